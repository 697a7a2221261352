"""The recurrent cell on ciphertexts: the clear result, canonical bytes, refreshes, and what is refused."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

from he.context import PrivateContext, PublicContext
from he.errors import DepthError, GateError, GateReason, MagnitudeError, MissingKeyError, ParameterError
from he.keys import RelinKeys
from he.params import CkksParams, build_params
from he.recurrent import OddCubic, RecurrentCell, evaluate_sequence
from he.recurrent_circuit import Cubic, Curves
from he.sequence_program import (
    REQUEST_MAGIC,
    SegmentProgram,
    build_segment_header,
    build_segment_plan,
    check_model,
    check_segment_request,
    check_segment_result,
    compute_capacity,
    encode_clear_model,
    plan_segments,
)
from he.sequences import OpenedState, compute_segment, decrypt_segment, encrypt_model, encrypt_segment
from tests.he.synthetic import make_relin_keys, make_residues

GATE = OddCubic(0.5, 0.216591882, -0.006602094, 4.0, 0.038)
TANH = OddCubic(0.0, 0.866367526, -0.105633499, 2.0, 0.076)
SMALL = build_params(1024, (55, *(40,) * 8, 55), insecure=True)
DEEP = build_params(1024, (40, *(28,) * 15, 40), insecure=True)
"""Room for two steps in one segment."""
REAL = build_params(16384, (55, *(40,) * 8, 55))
COUNT = 20
ROUNDED = 2.0**-17 + 1e-6
"""Decisions are rounded to 2^-16; beyond that an error of a millionth is left."""
GOLDEN = "b009ce4bcca97895c77f8a27c1b1a6af758315ba7dd49e1850901451bf4717e2"
"""SHA-256 of the result over synthetic residues; a change here makes peers of two versions disagree."""


def make_cell(features: int = 3, hidden: int = 3, seed: int = 1) -> RecurrentCell:
    generator = np.random.default_rng(seed)
    return RecurrentCell(
        weights=generator.normal(0, 0.3, (4 * hidden, features)),
        recurrent=generator.normal(0, 0.3, (4 * hidden, hidden)),
        bias=generator.normal(0, 0.3, 4 * hidden),
        spatial=generator.normal(0, 1, features),
        temporal=generator.normal(0, 1, hidden),
        offset=0.125,
        gate=GATE,
        candidate=TANH,
        squash=TANH,
        feature_bound=4.0,
    )


@dataclass
class Scene:
    """A sequence of three steps through all its segments."""

    params: CkksParams
    encrypted: bool
    cell: RecurrentCell

    @cached_property
    def private(self) -> PrivateContext:
        return PrivateContext.generate(self.params)

    @cached_property
    def peer(self) -> PublicContext:
        """A peer that has the keys by way of their bytes."""
        keys = self.private.public.relin_keys
        assert keys is not None
        return PublicContext(self.params, relin_keys=RelinKeys.decode(self.params, keys.encode()))

    @cached_property
    def programs(self) -> tuple[SegmentProgram, ...]:
        return plan_segments(self.params, self.cell, 3, encrypted=self.encrypted)

    def get_model(self, program: SegmentProgram) -> bytes:
        if program.encrypted:
            return encrypt_model(self.private.public, program, self.cell)
        return encode_clear_model(program, self.cell)

    @cached_property
    def features(self) -> np.ndarray:
        features = np.random.default_rng(2).normal(0, 0.8, (3, self.cell.features, COUNT))
        features[0, 0, :2] = -4.0, 4.0
        return np.clip(features, -4.0, 4.0)

    @cached_property
    def first_request(self) -> tuple[bytes, bytes]:
        """Model and request of the first segment."""
        program = self.programs[0]
        model = self.get_model(program)
        plan = build_segment_plan(program)
        return model, encrypt_segment(self.private, plan, model, self.features[: program.steps])

    def run(self) -> np.ndarray:
        """Decisions (3, COUNT), the state refreshed between segments."""
        decisions, state, start = [], None, 0
        for program in self.programs:
            plan, model = build_segment_plan(program), self.get_model(program)
            part = self.features[start : start + program.steps]
            request = encrypt_segment(self.private, plan, model, part, state)
            result = compute_segment(self.peer, model, request)
            assert (len(model), len(request)) == (plan.model_bytes, plan.request_bytes)
            assert len(result) == plan.result_bytes
            got, state = decrypt_segment(self.private, plan, model, result, COUNT)
            decisions.append(got)
            start += program.steps
        return np.concatenate(decisions)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(SMALL, encrypted=False, cell=make_cell())


@pytest.mark.parametrize(
    ("params", "encrypted", "segments", "tolerance"),
    [
        (SMALL, False, 3, ROUNDED),
        (SMALL, True, 3, ROUNDED),
        pytest.param(DEEP, False, 2, 1e-3, marks=pytest.mark.slow),
        pytest.param(DEEP, True, 2, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_decisions_are_the_clear_ones(
    params: CkksParams, encrypted: bool, segments: int, tolerance: float
) -> None:
    made = Scene(params, encrypted, make_cell())
    assert len(made.programs) == segments
    error = float(np.abs(made.run() - evaluate_sequence(made.cell, made.features)).max())
    print(f"{params.name}, encrypted weights {encrypted}: largest error {error:.2e}")
    assert error < tolerance


@pytest.mark.slow
def test_decisions_are_the_clear_ones_at_128_bits() -> None:
    made = Scene(REAL, encrypted=False, cell=make_cell(2, 2))
    assert np.abs(made.run() - evaluate_sequence(made.cell, made.features)).max() < ROUNDED


def test_another_number_of_features_than_hidden_values() -> None:
    made = Scene(SMALL, encrypted=False, cell=make_cell(4, 2))
    assert np.abs(made.run() - evaluate_sequence(made.cell, made.features)).max() < ROUNDED


def test_two_peers_come_to_the_same_bytes(scene: Scene) -> None:
    model, request = scene.first_request
    keys = scene.private.public.relin_keys
    assert keys is not None
    other = PublicContext(SMALL, relin_keys=RelinKeys.decode(SMALL, keys.encode()))
    assert compute_segment(scene.peer, model, request) == compute_segment(other, model, request)


def test_golden_hash() -> None:
    """Bit for bit what every version before this one computed, from integer arithmetic alone."""
    curves = Curves(Cubic(-1.25, 0.5), Cubic(-2.0, 0.0), Cubic(-1.75, 0.0))
    program = replace(plan_segments(DEEP, make_cell(), 4)[1], curves=curves)
    plan = build_segment_plan(program)
    integers = np.array(
        [(index * 2654435761 % 2**32) % (1 << 29) - (1 << 28) for index in range(program.places.total)]
    )
    model = program.encode() + integers.astype("<i8").tobytes()
    residues = [
        make_residues(100 + index, DEEP, 2, body.form.level) for index, body in enumerate(plan.request_bodies)
    ]
    request = build_segment_header(REQUEST_MAGIC, plan, model) + b"".join(residues)
    result = compute_segment(PublicContext(DEEP, relin_keys=make_relin_keys(DEEP)), model, request)
    check_segment_result(plan, model, result)
    assert hashlib.sha256(result).hexdigest() == GOLDEN


def test_progress_is_reported() -> None:
    made = Scene(DEEP, encrypted=False, cell=make_cell(1, 1))
    seen: list[tuple[int, int]] = []
    compute_segment(made.peer, *made.first_request, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_peer_needs_no_key_that_decrypts(scene: Scene) -> None:
    compute_segment(scene.peer, *scene.first_request)
    assert not scene.peer.engine.has_secret
    with pytest.raises(MissingKeyError):
        compute_segment(PublicContext(SMALL), *scene.first_request)


# --- the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "steps"), [(8, 0), (9, 1), (15, 1), (16, 2), (23, 3)])
def test_the_depth_budget_of_a_step(levels: int, steps: int) -> None:
    params = build_params(1024, (40, *(24,) * (levels - 1), 40), insecure=True)
    assert compute_capacity(params) == steps
    if steps == 0:
        with pytest.raises(DepthError, match="a step and its decision take 9"):
            plan_segments(params, make_cell(), 3)
        return
    programs = plan_segments(params, make_cell(), 7)
    assert sum(program.steps for program in programs) == 7
    assert len(programs) == -(-7 // steps)
    assert [program.continues for program in programs] == [False] + [True] * (len(programs) - 1)


def test_a_segment_takes_no_more_steps_than_there_is_room_for(scene: Scene) -> None:
    with pytest.raises(DepthError, match="room for 1 steps"):
        replace(scene.programs[0], steps=2)


def test_segments_in_the_middle_are_one_model() -> None:
    programs = plan_segments(SMALL, make_cell(), 5)
    assert len({program.encode() for program in programs}) == 2


# --- what is refused --------------------------------------------------------------------------


def change(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_the_gate_refuses_what_is_not_exactly_a_request(scene: Scene) -> None:
    model, request = scene.first_request
    plan = build_segment_plan(scene.programs[0])
    last = plan.request_bodies[-1]
    half = last.get_length(SMALL) // 2
    too_large = SMALL.primes[0].to_bytes(8, "little")
    other = encode_clear_model(scene.programs[0], make_cell(seed=9))
    for reason, data in (
        (GateReason.LENGTH, request[:-8]),
        (GateReason.LENGTH, request + bytes(8)),
        (GateReason.LENGTH, b""),
        (GateReason.HEADER, change(request, 0, b"X")),
        (GateReason.HEADER, build_segment_header(REQUEST_MAGIC, plan, other) + request[64:]),
        (GateReason.RESIDUE, change(request, last.offset, too_large)),
        (GateReason.TRANSPARENT, change(request, last.offset + half, bytes(half))),
    ):
        with pytest.raises(GateError) as caught:
            check_segment_request(plan, model, data)
        assert caught.value.reason is reason
        with pytest.raises(GateError):
            compute_segment(scene.peer, model, data)


@pytest.mark.parametrize("encrypted", [False, True])
def test_models_have_one_encoding(encrypted: bool) -> None:
    made = Scene(SMALL, encrypted, make_cell(1, 1))
    program = made.programs[1]
    model = made.get_model(program)
    assert check_model(model, allow_insecure=True).program == program
    with pytest.raises(ParameterError, match="insecure"):
        check_model(model)
    for data in (model[:-8], model + bytes(8), model[:100], b"", change(model, 0, b"X")):
        with pytest.raises(GateError):
            check_model(data, allow_insecure=True)
    # Features, hidden values, steps, flags, and the bound of features.
    for at, new in ((40, b"\0\0"), (42, b"\xff\xff"), (44, b"\2\0"), (46, b"\4\0"), (96, bytes(8))):
        with pytest.raises((GateError, ParameterError, DepthError)):
            check_model(change(model, at, new), allow_insecure=True)


def test_large_weights_are_refused(scene: Scene) -> None:
    program = scene.programs[0]
    with pytest.raises(ParameterError, match="256"):
        encode_clear_model(program, replace(scene.cell, offset=300.0))
    model = scene.get_model(program)
    with pytest.raises(GateError, match="256"):
        check_model(change(model, len(model) - 8, (1 << 50).to_bytes(8, "little")), allow_insecure=True)


def test_what_does_not_belong_together_is_refused(scene: Scene) -> None:
    first, following = scene.programs[0], scene.programs[1]
    plan, model = build_segment_plan(first), scene.get_model(first)
    x = scene.features[:1]
    state = OpenedState(np.zeros((3, COUNT)), np.zeros((3, COUNT)))
    for features in (x[:, :2], x[0], scene.features, np.zeros((1, 3, SMALL.slots + 1))):
        with pytest.raises(ParameterError, match="features"):
            encrypt_segment(scene.private, plan, model, features)
    with pytest.raises(ParameterError, match="state"):
        encrypt_segment(scene.private, plan, model, x, state)
    later = build_segment_plan(following)
    with pytest.raises(ParameterError, match="state"):
        encrypt_segment(scene.private, later, scene.get_model(following), x)
    with pytest.raises(ParameterError, match="state"):
        encrypt_segment(scene.private, later, model, x, replace(state, cell=np.zeros((3, 1))))
    with pytest.raises(ParameterError, match="encrypted"):
        encode_clear_model(replace(first, encrypted=True), scene.cell)
    with pytest.raises(ParameterError, match="clear"):
        encrypt_model(scene.private.public, first, scene.cell)
    with pytest.raises(ParameterError, match="does not belong"):
        compute_segment(PublicContext(DEEP, relin_keys=make_relin_keys(DEEP)), *scene.first_request)


@pytest.mark.parametrize("value", [4.1, np.nan, np.inf])
def test_values_out_of_range_are_refused(scene: Scene, value: float) -> None:
    plan, model = build_segment_plan(scene.programs[0]), scene.first_request[0]
    with pytest.raises(MagnitudeError, match="features"):
        encrypt_segment(scene.private, plan, model, np.full((1, 3, COUNT), value))
    later = build_segment_plan(scene.programs[1])
    state = OpenedState(np.full((3, COUNT), 20 * value), np.zeros((3, COUNT)))
    with pytest.raises(MagnitudeError, match="state"):
        encrypt_segment(scene.private, later, model, scene.features[:1], state)
