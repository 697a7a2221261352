"""Recurrent inference as a list of segments, each from an encrypted request to an encrypted result.

A ring has room for so many steps of the cell and no more. What follows is another segment: the requester
decrypts the state, and encrypts it again with the next features. Such a *refresh* is the requester's own act,
is counted by the plan, and is never asked of who evaluates, who holds no key that decrypts. What it costs
beside time: the requester sees the state between segments, from which a requester that asks often can learn
about the model.

Model bytes: a header of fixed length (`SegmentProgram.encode`), then the weights: int64 at the scale of the
parameters where they are clear, ciphertexts under the request's key pair where they are encrypted. All that
the circuit multiplies by is in these bytes as integers or doubles: nothing is left to a library's rounding.

Requests and results: 64 bytes of header, then ciphertexts in the order of `SegmentPlan`.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from he.counts import Counts
from he.errors import DepthError, GateError, GateReason, ParameterError
from he.formats import HEADER_BYTES, Body, compute_body_bytes
from he.gate import Source, check_bodies, check_header, check_length, open_source
from he.params import CkksParams, get_params
from he.plan import Form
from he.recurrent import MAX_FEATURES, MAX_HIDDEN, RecurrentCell
from he.recurrent_circuit import (
    DECISION_DEPTH,
    STEP_DEPTH,
    Carried,
    ClearWeights,
    Cubic,
    Curves,
    EncryptedWeights,
    Operand,
    Places,
    Shadow,
    ShadowOperations,
    StepCircuit,
    Weights,
    build_curves,
    compute_scale,
    fold_weights,
)

Floats = NDArray[np.float64]
T = TypeVar("T", bound=Operand)

MODEL_MAGIC: Final = b"BMIFSQM1"
REQUEST_MAGIC: Final = b"BMIFSQQ1"
RESULT_MAGIC: Final = b"BMIFSQR1"

MAX_STEPS: Final = 64
MAX_WEIGHT: Final = 256
"""Largest magnitude of a clear weight."""

_PROGRAM: Final = struct.Struct("<8s32s4H7d")
_HEADER: Final = struct.Struct("<8s32s24s")
_CONTINUES, _ENCRYPTED = 1, 2


@dataclass(frozen=True, slots=True)
class SegmentProgram:
    """What a segment computes, without its weights."""

    params: CkksParams
    features: int
    hidden: int
    steps: int
    continues: bool
    """Whether it begins with an earlier segment's state, and not with none."""
    encrypted: bool
    """Whether weights are ciphertexts."""
    curves: Curves
    feature_bound: float

    def __post_init__(self) -> None:
        for name, value, most in (
            ("features", self.features, MAX_FEATURES),
            ("hidden", self.hidden, MAX_HIDDEN),
            ("steps", self.steps, MAX_STEPS),
        ):
            if not 1 <= value <= most:
                raise ParameterError(f"segment.{name}: expected 1 to {most}, got {value}")
        numbers = self._get_numbers()
        if not bool(np.isfinite(numbers).all()) or max(map(abs, numbers)) > 2.0**10:
            raise ParameterError("segment: coefficients must be finite and at most 1024")
        if self.feature_bound <= 0.0:
            raise ParameterError("segment.feature_bound: expected a positive number")
        capacity = compute_capacity(self.params)
        if self.steps > capacity:
            raise DepthError(
                f"{self.params.name} has {self.params.levels} levels, room for {capacity} steps of"
                f" {STEP_DEPTH} and a decision of {DECISION_DEPTH}; {self.steps} need more segments"
            )

    def _get_numbers(self) -> tuple[float, ...]:
        cubics = (self.curves.gate, self.curves.candidate, self.curves.squash)
        pairs = tuple(number for cubic in cubics for number in (cubic.linear, cubic.constant))
        return (*pairs, self.feature_bound)

    @property
    def scale(self) -> Fraction:
        """Of weights and of fresh features."""
        return compute_scale(self.params)

    @property
    def places(self) -> Places:
        return Places(self.features, self.hidden)

    def encode(self) -> bytes:
        """The header of the model's bytes."""
        flags = (_CONTINUES if self.continues else 0) | (_ENCRYPTED if self.encrypted else 0)
        numbers = (number + 0.0 for number in self._get_numbers())
        name = self.params.name.encode("ascii")
        return _PROGRAM.pack(MODEL_MAGIC, name, self.features, self.hidden, self.steps, flags, *numbers)

    @classmethod
    def decode(cls, data: bytes, *, allow_insecure: bool = False) -> Self:
        """Raises: GateError, ParameterError, DepthError."""
        check_length(memoryview(data), _PROGRAM.size)
        magic, name, features, hidden, steps, flags, *numbers = _PROGRAM.unpack(data)
        if magic != MODEL_MAGIC or flags > _CONTINUES | _ENCRYPTED or not name.isascii():
            raise GateError(GateReason.HEADER, "not the model of a recurrent segment")
        cubics = [Cubic(numbers[index], numbers[index + 1]) for index in range(0, 6, 2)]
        program = cls(
            params=get_params(name.rstrip(b"\0").decode("ascii"), allow_insecure=allow_insecure),
            features=features,
            hidden=hidden,
            steps=steps,
            continues=bool(flags & _CONTINUES),
            encrypted=bool(flags & _ENCRYPTED),
            curves=Curves(*cubics),
            feature_bound=numbers[6],
        )
        if program.encode() != data:
            raise GateError(GateReason.HEADER, "not the canonical encoding of a segment")
        return program


def compute_capacity(params: CkksParams) -> int:
    """Steps that one segment can take, with the last one's decision."""
    return max(0, (params.levels - 1 - DECISION_DEPTH) // STEP_DEPTH)


# --- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The form of everything that travels, and how many operations there are."""

    program: SegmentProgram
    state: tuple[Form, Form] | None
    """Hidden values and cell that the request begins with."""
    features: tuple[Form, ...]
    """By step."""
    decision: tuple[Form, ...]
    """By step."""
    next_state: tuple[Form, Form]
    weight_levels: tuple[int, ...]
    """By place, the highest level at which the weight is used."""
    counts: Counts

    @property
    def request_bodies(self) -> tuple[Body, ...]:
        """Hidden values and cell, then features by step."""
        forms: list[Form] = []
        if self.state is not None:
            forms += [form for form in self.state for _ in range(self.program.hidden)]
        forms += [form for form in self.features for _ in range(self.program.features)]
        return self._lay_out(forms, HEADER_BYTES)

    @property
    def result_bodies(self) -> tuple[Body, ...]:
        """Decisions by step, then hidden values and cell."""
        forms = [*self.decision, *(form for form in self.next_state for _ in range(self.program.hidden))]
        return self._lay_out(forms, HEADER_BYTES)

    @property
    def weight_bodies(self) -> tuple[Body, ...]:
        """Of encrypted weights, by place."""
        forms = [Form(level, self.program.scale) for level in self.weight_levels]
        return self._lay_out(forms, _PROGRAM.size)

    @property
    def request_bytes(self) -> int:
        return self._get_end(self.request_bodies)

    @property
    def result_bytes(self) -> int:
        return self._get_end(self.result_bodies)

    @property
    def model_bytes(self) -> int:
        if self.program.encrypted:
            return self._get_end(self.weight_bodies)
        return _PROGRAM.size + 8 * self.program.places.total

    @property
    def relin_bytes(self) -> int:
        params = self.program.params
        return HEADER_BYTES + params.levels * 2 * len(params.primes) * params.ring * 8

    def _lay_out(self, forms: list[Form], offset: int) -> tuple[Body, ...]:
        bodies = []
        for form in forms:
            bodies.append(Body(offset, form))
            offset += compute_body_bytes(self.program.params, form.level)
        return tuple(bodies)

    def _get_end(self, bodies: tuple[Body, ...]) -> int:
        return bodies[-1].offset + bodies[-1].get_length(self.program.params)


def run_steps(
    circuit: StepCircuit[T],
    steps: int,
    take_features: Callable[[int, Form], list[T]],
    state: Carried[T] | None,
) -> tuple[list[T], Carried[T]]:
    """Decisions and the last state. Features of a later step are taken at its hidden values' form."""
    params = circuit.params
    form = Form(params.levels, compute_scale(params))
    decisions: list[T] = []
    result = state
    for step in range(steps):
        if step > 0 and result is not None:
            form = Form(result.hidden[0].level, result.hidden[0].scale)
        decision, result = circuit.run(take_features(step, form), result)
        decisions.append(decision)
    if result is None:
        raise ParameterError("a segment has at least one step")
    for value in (*decisions, *result.hidden, *result.cell):
        circuit.operations.drop_inplace(value, 1)
    return decisions, result


@lru_cache(maxsize=64)
def build_segment_plan(program: SegmentProgram) -> SegmentPlan:
    """Runs the circuit on shadows."""
    params, places = program.params, program.places
    operations = ShadowOperations(params)
    levels, scale = [0] * places.total, program.scale
    # Which integers a shadow is multiplied by changes nothing.
    weights: Weights[Shadow] = ClearWeights(operations, scale, np.zeros(places.total, dtype=np.int64))
    if program.encrypted:

        def get(place: int, level: int) -> Shadow:
            levels[place] = max(levels[place], level)
            return Shadow(level, scale)

        weights = EncryptedWeights(operations, get)
    circuit = StepCircuit(operations, params, places, program.curves, weights)
    top = Form(params.levels, compute_scale(params))
    features: list[Form] = []

    def take_features(step: int, form: Form) -> list[Shadow]:
        features.append(form)
        return [Shadow(form.level, form.scale) for _ in range(program.features)]

    state: Carried[Shadow] | None = None
    forms: tuple[Form, Form] | None = None
    if program.continues:
        # The cell meets the forget gate: what that one's form is, a row computed for nothing says.
        inputs = [Shadow(top.level, top.scale) for _ in range(program.features)]
        gate = circuit.compute_gate(inputs, None, 0, program.curves.gate)
        operations.counts.clear()
        forms = (top, Form(gate.level, gate.scale))
        hidden, cell = ([Shadow(form.level, form.scale) for _ in range(program.hidden)] for form in forms)
        state = Carried(hidden, cell)
    decisions, last = run_steps(circuit, program.steps, take_features, state)
    return SegmentPlan(
        program=program,
        state=forms,
        features=tuple(features),
        decision=tuple(Form(value.level, value.scale) for value in decisions),
        next_state=(
            Form(last.hidden[0].level, last.hidden[0].scale),
            Form(last.cell[0].level, last.cell[0].scale),
        ),
        # Rows that a first step does not use are there all the same, at the least cost.
        weight_levels=tuple(max(1, level) for level in levels),
        counts=operations.counts,
    )


def plan_segments(
    params: CkksParams, cell: RecurrentCell, steps: int, *, encrypted: bool = False
) -> tuple[SegmentProgram, ...]:
    """The fewest segments that take `steps` steps; there is a refresh between each two of them.

    Raises: DepthError if the parameters have not the depth of a single step.
    """
    capacity = compute_capacity(params)
    if capacity < 1:
        raise DepthError(
            f"{params.name} has {params.levels} levels; a step and its decision take"
            f" {STEP_DEPTH + DECISION_DEPTH + 1}"
        )
    curves = build_curves(cell)
    return tuple(
        SegmentProgram(
            params,
            cell.features,
            cell.hidden,
            min(capacity, steps - start),
            start > 0,
            encrypted,
            curves,
            cell.feature_bound,
        )
        for start in range(0, steps, capacity)
    )


# --- models and the gate ------------------------------------------------------------------------


def encode_clear_model(program: SegmentProgram, cell: RecurrentCell) -> bytes:
    """Raises: ParameterError if the program's weights are encrypted, or a weight is too large."""
    if program.encrypted:
        raise ParameterError("the program says that weights are encrypted")
    folded = fold_weights(cell)
    if not bool((np.abs(folded) <= MAX_WEIGHT).all()):
        raise ParameterError(f"cell: a weight is larger than {MAX_WEIGHT}")
    integers = [round(Fraction(float(weight)) * program.scale) for weight in folded]
    return program.encode() + np.array(integers, dtype="<i8").tobytes()


def read_program(source: Source, *, allow_insecure: bool = False) -> SegmentProgram:
    """Of a model's bytes.

    Raises: GateError, ParameterError, DepthError.
    """
    view = open_source(source)
    if len(view) < _PROGRAM.size:
        raise GateError(GateReason.LENGTH, f"a model of {len(view)} bytes is too short")
    return SegmentProgram.decode(bytes(view[: _PROGRAM.size]), allow_insecure=allow_insecure)


def check_model(source: Source, *, allow_insecure: bool = False) -> SegmentPlan:
    """The plan of a well-formed model.

    Raises: GateError, ParameterError, DepthError.
    """
    plan = build_segment_plan(read_program(source, allow_insecure=allow_insecure))
    view = open_source(source)
    check_length(view, plan.model_bytes)
    if plan.program.encrypted:
        check_bodies(plan.program.params, view, plan.weight_bodies)
    else:
        read_clear_weights(plan, view)
    return plan


def read_clear_weights(plan: SegmentPlan, view: memoryview) -> NDArray[np.int64]:
    """By place.

    Raises: GateError if one is too large.
    """
    integers = np.frombuffer(view, dtype="<i8", offset=_PROGRAM.size, count=plan.program.places.total)
    limit = MAX_WEIGHT * int(plan.program.scale)
    if bool(((integers > limit) | (integers < -limit)).any()):
        raise GateError(GateReason.RESIDUE, f"a weight is larger than {MAX_WEIGHT}")
    return integers.astype(np.int64)


def build_segment_header(magic: bytes, plan: SegmentPlan, model: Source) -> bytes:
    """The one valid header of a request or result: magic, parameters, and 24 bytes of the SHA-256 of the
    program, with its weights where these are clear."""
    view = open_source(model)
    end = _PROGRAM.size if plan.program.encrypted else plan.model_bytes
    digest = hashlib.sha256(view[:end]).digest()[:24]
    return _HEADER.pack(magic, plan.program.params.name.encode("ascii"), digest)


def check_segment_request(plan: SegmentPlan, model: Source, source: Source) -> None:
    """Raises: GateError."""
    view = open_source(source)
    check_length(view, plan.request_bytes)
    check_header(view, build_segment_header(REQUEST_MAGIC, plan, model))
    check_bodies(plan.program.params, view, plan.request_bodies)


def check_segment_result(plan: SegmentPlan, model: Source, source: Source) -> None:
    """Raises: GateError."""
    view = open_source(source)
    check_length(view, plan.result_bytes)
    check_header(view, build_segment_header(RESULT_MAGIC, plan, model))
    check_bodies(plan.program.params, view, plan.result_bodies)
