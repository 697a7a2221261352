"""A whole sequence network planned: the frames' program, the segments of its recurrent part, the refreshes.

Frames come first, each frame of each sequence in a slot of its own, so that overlapping windows share them.
The requester opens their features, puts them in the order of windows and steps, and encrypts them again: the
first refresh, which a shift between slots (and with it keys that mix patients) would be needed to avoid, and
which the depth of what follows asks for anyway. Further refreshes are between segments.
"""

from dataclasses import dataclass

from he.autoplan import DEFAULT_COSTS
from he.counts import Counts, Operation
from he.params import CkksParams, build_params
from he.program import Program
from he.recurrent import RecurrentCell
from he.sequence_program import SegmentPlan, build_segment_plan, plan_segments


def build_default_params() -> CkksParams:
    """One step a segment: nine data primes, as many as 128 bits of security leave for scales of 2^40."""
    return build_params(16384, (55, *(40,) * 8, 55))


@dataclass(frozen=True, slots=True, eq=False)
class SequencePlan:
    """What a window of `steps` frames takes."""

    frames: Program
    segments: tuple[SegmentPlan, ...]

    @property
    def steps(self) -> int:
        return sum(segment.program.steps for segment in self.segments)

    @property
    def refreshes(self) -> int:
        """Times the requester decrypts and encrypts between the frames and the last decision: once for the
        features, and between each two segments."""
        return len(self.segments)

    @property
    def seconds(self) -> float:
        """Predicted for the evaluator, of one core, for full requests."""
        return self.frames.seconds + sum(map(compute_segment_seconds, self.segments))

    def describe(self) -> tuple[str, ...]:
        """The plan, in lines for people."""
        lines = ["frames, a slot each:", *(f"  {line}" for line in self.frames.describe())]
        lines.append(f"features opened and encrypted again: refresh 1 of {self.refreshes}")
        for index, segment in enumerate(self.segments):
            lines += [f"segment {index + 1} of {len(self.segments)}, a slot a window:"]
            lines += [f"  {line}" for line in describe_segment(segment)]
            if index + 1 < len(self.segments):
                lines.append(f"state opened and encrypted again: refresh {index + 2} of {self.refreshes}")
        lines.append(f"predicted    {self.seconds:.1f} s of one core for all of it")
        return tuple(lines)


def plan_sequence(
    frames: Program, cell: RecurrentCell, steps: int, params: CkksParams, *, encrypted: bool = False
) -> SequencePlan:
    """Raises: DepthError if the parameters have not the depth of a single step."""
    programs = plan_segments(params, cell, steps, encrypted=encrypted)
    return SequencePlan(frames, tuple(map(build_segment_plan, programs)))


def count_segment(plan: SegmentPlan) -> Counts:
    """Operations of the circuit, with loading and saving."""
    counts: Counts = plan.counts.copy()
    for body in plan.request_bodies:
        counts[Operation.LOAD, body.form.level] += 1
    if plan.program.encrypted:
        for body in plan.weight_bodies:
            counts[Operation.LOAD, body.form.level] += 1
    counts[Operation.SAVE, 1] += len(plan.result_bodies)
    return counts


def compute_segment_seconds(plan: SegmentPlan) -> float:
    """Predicted for the evaluator, of one core."""
    return DEFAULT_COSTS.compute_seconds(count_segment(plan), plan.program.params.ring)


def describe_segment(plan: SegmentPlan) -> tuple[str, ...]:
    """One segment's lines."""
    program, counts = plan.program, plan.counts
    totals = {
        name: sum(count for (operation, _), count in counts.items() if operation in kinds)
        for name, kinds in (
            ("products", (Operation.MULTIPLY, Operation.SQUARE)),
            ("products by constants", (Operation.CONSTANT_2,)),
            ("relinearisations", (Operation.RELINEARIZE,)),
            ("rescalings", (Operation.RESCALE_2,)),
        )
    }
    levels = ", ".join(str(form.level) for form in plan.features)
    weights = "encrypted" if program.encrypted else "clear"
    return (
        f"parameters   {program.params.name}, {program.params.slots} windows a request, {weights} weights",
        f"steps        {program.steps}, features taken at level {levels}; results leave at level 1",
        f"begins with  {'the state of the segment before' if program.continues else 'no state'}",
        f"request      {plan.request_bytes / 1e6:.1f} MB, {len(plan.request_bodies)} ciphertexts",
        f"model        {plan.model_bytes / 1e6:.1f} MB",
        f"keys         {plan.relin_bytes / 1e6:.1f} MB",
        f"result       {plan.result_bytes / 1e6:.1f} MB, {len(plan.result_bodies)} ciphertexts",
        "operations   " + ", ".join(f"{total} {name}" for name, total in totals.items()),
        f"predicted    {compute_segment_seconds(plan):.1f} s of one core",
    )
