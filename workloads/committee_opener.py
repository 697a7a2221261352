"""A committee member's part of an opening, and the sum of all parts, as jobs for worker processes.

Jobs carry paths and plain data. The member's share and its noise secret are read from their files where the
job runs and never cross a pipe; what comes back are residues under noise and masks, and opened integers.
Every ciphertext passes the gate again: what is opened must be what was confirmed, whoever wrote the file.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from he.errors import HeError
from he.formats import BundleLayout, build_bundle_layout, build_loss_layout
from he.gate import check_bundle, check_loss
from he.multiparty.masking import PairSecrets
from he.multiparty.opening import (
    PartialOpening,
    Question,
    add_bodies,
    combine_openings,
    open_partially,
    read_bodies,
)
from he.multiparty.sharing import KeyShare
from he.plan import Plan, build_plan
from workloads import committee
from workloads.base import WorkloadError
from workloads.box import PatchLimits, compute_gradient_bound, compute_loss_bound
from workloads.ceremony_share import load_share
from workloads.committee import (
    ImplausibleError,
    OpeningBinding,
    check_gradient,
    compute_gradient_deviations,
    compute_gradient_limits,
    compute_loss_deviation,
    compute_loss_limits,
    convert_gradient,
    convert_loss,
    draw_member_noise,
)
from workloads.custodian import NOISE_FILE, SECRET_KEY_FILE
from workloads.fusion import WORKLOAD, FusionSpec, FusionTraining
from workloads.sealed import NOISE_KIND, PLAIN, FolderKeys, read_secret

KINDS = ("gradient", "loss")
MAX_SHARES = 2
"""Loaded at once in one process."""

_shares: OrderedDict[Path, tuple[KeyShare, PairSecrets]] = OrderedDict()
_questions: dict[tuple[object, ...], Question] = {}
"""The last one: part and sum of an opening ask the same, and reading it is most of their work."""


@dataclass(frozen=True, slots=True)
class OpeningJob:
    """What is opened: ciphertexts of one kind, added entry by entry."""

    kind: str
    """`gradient` or `loss`."""
    preset: str
    model: bytes
    weights: tuple[int, ...]
    files: tuple[Path, ...]
    """Confirmed bundles of the step's batches, or loss ciphertexts of all validation batches."""
    patches: int
    """In all of them."""
    noise: tuple[int, int]
    """A member's deviation over what one patch can change at these weights: numerator and denominator."""
    scale_bits: int
    subset: tuple[int, ...]
    attempt: int
    opening: bytes
    """32 bytes that name it, as in `OpeningBinding`."""


@dataclass(frozen=True, slots=True)
class SumJob:
    """All parts of a subset, by place."""

    job: OpeningJob
    parts: tuple[tuple[tuple[int, ...], ...], ...]


def get_moduli(
    kind: str, preset: str, model: bytes, workload: FusionTraining = WORKLOAD
) -> tuple[tuple[int, ...], ...]:
    """The primes of each ciphertext of an opening. Raises: WorkloadError."""
    plan = _build_plan(preset, model, workload)
    return tuple(plan.params.primes[: body.form.level] for body in _get_layout(plan, kind).bodies)


@dataclass(frozen=True, slots=True)
class CommitteeOpener:
    """Holder of one share of a task's key, in `directory`; can read nothing alone."""

    directory: Path = field(repr=False)
    workload: FusionTraining = WORKLOAD
    keys: FolderKeys = PLAIN
    """For secrets that are sealed."""

    def run_part(self, job: OpeningJob) -> tuple[tuple[int, ...], ...]:
        """This member's residues by ciphertext and prime; the same bytes at every call.

        Raises: WorkloadError on ciphertexts that the gate refuses, or a subset that misses the member.
        """
        plan = _build_plan(job.preset, job.model, self.workload)
        try:
            question = read_question(plan, job)
            binding = bind(job, question)
            noise = draw_member_noise(self._get_noise_secret(), binding, compute_deviations(plan, job))
            share, pairs = self._get_share()
            part = open_partially(share, pairs, job.subset, question, noise, binding.encode())
        except HeError as error:
            raise WorkloadError(f"the opening: {error}") from error
        return part.residues

    def _get_share(self) -> tuple[KeyShare, PairSecrets]:
        path = (self.directory / SECRET_KEY_FILE).resolve()
        if path not in _shares:
            _shares[path] = load_share(path.parent, self.keys, allow_insecure=self.workload.allow_insecure)
            while len(_shares) > MAX_SHARES:
                _shares.popitem(last=False)
        _shares.move_to_end(path)
        return _shares[path]

    def _get_noise_secret(self) -> bytes:
        return read_secret(self.directory / NOISE_FILE, self.keys.noise, NOISE_KIND)


def run_sum(job: SumJob, workload: FusionTraining = WORKLOAD) -> tuple[int, ...] | None:
    """The opened integers, for a loss one; None if no patches within their limits could give them.

    Needs no secret. Raises: WorkloadError on parts that are not of this opening.
    """
    opening = job.job
    plan = _build_plan(opening.preset, opening.model, workload)
    try:
        question = read_question(plan, opening)
        shapes = [[len(row) for row in part] for part in job.parts]
        if shapes != [list(question.levels)] * len(opening.subset):
            raise WorkloadError(f"expected a part of each of {list(opening.subset)}, of every ciphertext")
        parts = [
            PartialOpening(place, opening.subset, part)
            for place, part in zip(opening.subset, job.parts, strict=True)
        ]
        return _convert(plan, opening, combine_openings(question, parts))
    except ImplausibleError:
        return None
    except HeError as error:
        raise WorkloadError(f"the opening: {error}") from error


def _convert(plan: Plan, job: OpeningJob, coefficients: Sequence[int]) -> tuple[int, ...]:
    members, deviations, limits = len(job.subset), compute_deviations(plan, job), _get_limits(job)
    if job.kind == "gradient":
        bounds = compute_gradient_limits(plan, job.weights, job.patches, deviations, members, limits)
        check_gradient(coefficients, bounds)
        return convert_gradient(plan, job.weights, coefficients, job.scale_bits)
    [coefficient], [deviation] = coefficients, deviations
    interval = compute_loss_limits(plan, job.weights, job.patches, deviation, members, limits)
    committee.check_loss(coefficient, interval)
    return (convert_loss(plan, coefficient, job.patches, job.scale_bits),)


def compute_deviations(plan: Plan, job: OpeningJob) -> tuple[int, ...]:
    """Of a member's noise on each ciphertext, in units of coefficients.

    The ratio to what one patch can change is the job's at any weights, so openings compose as constants do.
    """
    multiplier, limits = _get_multiplier(job), _get_limits(job)
    if job.kind == "gradient":
        bound = compute_gradient_bound(plan.spec, job.weights, limits)
        noise = bound.share_noise(multiplier, job.scale_bits)
        return compute_gradient_deviations(plan, noise, job.scale_bits)
    sensitivity = compute_loss_bound(plan.spec, job.weights, limits).compute_sensitivity(job.scale_bits)
    return (compute_loss_deviation(plan, max(1, math.ceil(multiplier * sensitivity)), job.scale_bits),)


def _get_multiplier(job: OpeningJob) -> Fraction:
    noise, unit = job.noise
    if noise < 1 or unit < 1:
        raise WorkloadError(f"a committee opens nothing without noise, got a multiplier of {noise} / {unit}")
    return Fraction(noise, unit)


def _get_limits(job: OpeningJob) -> PatchLimits:
    return PatchLimits.declare(FusionSpec.decode(job.model))


def bind(job: OpeningJob, question: Question) -> OpeningBinding:
    """What a member's noise and masks are a function of."""
    return OpeningBinding(job.kind, job.opening, job.subset, job.attempt, (question.digest,))


def read_question(plan: Plan, job: OpeningJob) -> Question:
    """What members are asked: the sums of the files' ciphertexts, read once while the files stay as they are.

    Raises: HeError, WorkloadError, OSError.
    """
    states = [path.stat() for path in job.files]
    key = (
        job.kind,
        plan.params,
        job.model,
        job.files,
        *((s.st_ino, s.st_size, s.st_mtime_ns) for s in states),
    )
    if key not in _questions:
        found = _read_question(plan, job)
        _questions.clear()
        _questions[key] = found
    return _questions[key]


def _read_question(plan: Plan, job: OpeningJob) -> Question:
    bodies, check = _get_layout(plan, job.kind).bodies, check_bundle if job.kind == "gradient" else check_loss
    columns = []
    for path in job.files:
        data = path.read_bytes()  # one reading: what is checked is what is opened
        check(plan.params, plan.spec, data)
        columns.append(read_bodies(plan.params, bodies, data))
    if not columns:
        raise WorkloadError("an opening is of at least one file")
    return Question(plan.params, add_bodies(plan.params, columns))


def _get_layout(plan: Plan, kind: str) -> BundleLayout:
    if kind not in KINDS:
        raise WorkloadError(f"kind: expected gradient or loss, got {kind!r}")
    return build_bundle_layout(plan) if kind == "gradient" else build_loss_layout(plan)


def _build_plan(preset: str, model: bytes, workload: FusionTraining) -> Plan:
    params = workload.get_params(preset)
    try:
        return build_plan(params, FusionSpec.decode(model).circuit)
    except HeError as error:
        raise WorkloadError(f"model: {error}") from error
