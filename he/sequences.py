"""Encrypted sequences: what the requester, the model's owner and the evaluator each do with a segment."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.errors import MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES, Body
from he.gate import Source, open_source
from he.plan import Form
from he.recurrent import RecurrentCell
from he.recurrent_circuit import (
    Carried,
    ClearWeights,
    EncryptedWeights,
    StepCircuit,
    Weights,
    fold_weights,
)
from he.sequence_program import (
    REQUEST_MAGIC,
    RESULT_MAGIC,
    SegmentPlan,
    SegmentProgram,
    build_segment_header,
    build_segment_plan,
    check_model,
    check_segment_request,
    check_segment_result,
    read_clear_weights,
    run_steps,
)
from he.tensor import CiphertextTensor

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told (done, total)."""

DECISION_BITS = 16
"""Decisions are rounded to multiples of 2^-16, far above the scheme's error, which is a function of the
secret key (Li and Micciancio 2021): a decision may be told to others. States are not; they are encrypted."""

MAX_STATE = 64.0
"""Largest value of a state: far above what polynomials give within their intervals, far below wrapping."""


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


@dataclass(frozen=True, slots=True)
class OpenedState:
    """(H, B) each: the state between segments, as it is encrypted: the cell times its cubic's factor."""

    hidden: Floats
    cell: Floats


# --- the requester ------------------------------------------------------------------------------


def encrypt_segment(
    context: PrivateContext,
    plan: SegmentPlan,
    model: Source,
    features: Floats,
    state: OpenedState | None = None,
    report: Report = _ignore,
) -> bytes:
    """The request of features (steps, F, B), and of the state that the segment before gave.

    Raises: ParameterError on a wrong shape; MagnitudeError on values that are not finite or out of range.
    """
    program = plan.program
    count = features.shape[-1]
    if features.shape != (program.steps, program.features, count) or not 1 <= count <= program.params.slots:
        raise ParameterError(
            f"features: expected ({program.steps}, {program.features}, 1 to {program.params.slots}),"
            f" got {features.shape}"
        )
    if (state is not None) != program.continues:
        raise ParameterError("state: a segment that continues another takes its state, a first one none")
    rows = list(features.reshape(-1, count))
    _check_range("features", features, program.feature_bound)
    if state is not None:
        shape = (program.hidden, count)
        if state.hidden.shape != shape or state.cell.shape != shape:
            raise ParameterError(f"state: expected {shape}, got {state.hidden.shape}, {state.cell.shape}")
        _check_range("state", np.stack([state.hidden, state.cell]), MAX_STATE)
        rows = [*state.hidden, *state.cell, *rows]
    blob = bytearray(plan.request_bytes)
    blob[:HEADER_BYTES] = build_segment_header(REQUEST_MAGIC, plan, model)
    _encrypt_rows(context.public, blob, rows, plan.request_bodies, report)
    return bytes(blob)


def decrypt_segment(
    private: PrivateContext, plan: SegmentPlan, model: Source, result: Source, count: int
) -> tuple[Floats, OpenedState]:
    """Decisions (steps, count), rounded, and the state, of the first `count` slots.

    Raises: GateError.
    """
    check_segment_result(plan, model, result)
    view, program = open_source(result), plan.program
    rows = []
    for body in plan.result_bodies:
        data = view[body.offset : body.offset + body.get_length(program.params)]
        rows.append(private.decrypt_body(data, body.form)[:count])
    values, middle = np.stack(rows), program.steps + program.hidden
    decisions = np.rint(np.ldexp(values[: program.steps], DECISION_BITS))
    return np.ldexp(decisions, -DECISION_BITS), OpenedState(values[program.steps : middle], values[middle:])


def _check_range(what: str, values: Floats, bound: float) -> None:
    if not bool((np.abs(values) <= bound).all()):
        raise MagnitudeError(
            f"{what}: values must be finite and within {bound:.4g}, up to which scales reach"
        )


def _encrypt_rows(
    context: PublicContext, blob: bytearray, rows: list[Floats], bodies: tuple[Body, ...], report: Report
) -> None:
    for index, (row, body) in enumerate(zip(rows, bodies, strict=True)):
        data = context.engine.save(context.encrypt(row, body.form))
        blob[body.offset : body.offset + len(data)] = data
        report(index + 1, len(rows))


# --- the model's owner --------------------------------------------------------------------------


def encrypt_model(
    context: PublicContext, program: SegmentProgram, cell: RecurrentCell, report: Report = _ignore
) -> bytes:
    """The model with each weight as a ciphertext, the same in every slot.

    It takes the key pair's public key alone, yet who holds the secret key can read the weights: it is the
    requester's own, or a custody's whom the owner trusts.

    Raises: ParameterError if the program's weights are clear.
    """
    if not program.encrypted:
        raise ParameterError("the program says that weights are clear")
    plan = build_segment_plan(program)
    blob = bytearray(plan.model_bytes)
    header = program.encode()
    blob[: len(header)] = header
    ones = np.ones(program.params.slots)
    rows = [weight * ones for weight in fold_weights(cell)]
    _encrypt_rows(context, blob, rows, plan.weight_bodies, report)
    return bytes(blob)


# --- the evaluator ------------------------------------------------------------------------------


def compute_segment(
    context: PublicContext, model: Source, request: Source, report: Report = _ignore
) -> bytes:
    """The canonical result of a segment; `report` is told how many steps are done.

    Raises: GateError on malformed bytes; MissingKeyError without relinearisation keys; ParameterError if
    the keys are of other parameters than the model.
    """
    if context.relin_keys is None:
        raise MissingKeyError("recurrent inference needs relinearisation keys")
    plan = check_model(model, allow_insecure=context.params.insecure)
    if plan.program.params != context.params:
        raise ParameterError(f"{context!r} does not belong to {plan.program.params.name}")
    check_segment_request(plan, model, request)
    tensors = _evaluate(context.engine, plan, open_source(model), open_source(request), report)
    blob = bytearray(plan.result_bytes)
    blob[:HEADER_BYTES] = build_segment_header(RESULT_MAGIC, plan, model)
    for body, tensor in zip(plan.result_bodies, tensors, strict=True):
        data = context.engine.save(tensor)
        blob[body.offset : body.offset + len(data)] = data
    return bytes(blob)


class EngineOperations:
    """What the circuit does, on ciphertexts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.copy = engine.copy
        self.add_inplace = engine.add_inplace
        self.multiply = engine.multiply
        self.square = engine.square
        self.relinearize_inplace = engine.relinearize_inplace
        self.rescale_inplace = engine.rescale_inplace
        self.drop_inplace = engine.drop_inplace

    def add_constant_inplace(self, total: CiphertextTensor, value: int) -> None:
        constant = self.engine.build_constant(value, Form(total.level, total.scale))
        self.engine.add_constant_inplace(total, constant)

    def multiply_constant(self, operand: CiphertextTensor, value: int, scale: Fraction) -> CiphertextTensor:
        constant = self.engine.build_constant(value, Form(operand.level, scale))
        return self.engine.multiply_constant(operand, constant)


def _evaluate(
    engine: Engine, plan: SegmentPlan, model: memoryview, request: memoryview, report: Report
) -> list[CiphertextTensor]:
    program = plan.program
    operations = EngineOperations(engine)

    def load(view: memoryview, body: Body) -> CiphertextTensor:
        return engine.load(view[body.offset : body.offset + body.get_length(engine.params)], body.form)

    weights: Weights[CiphertextTensor]
    if program.encrypted:
        bodies = plan.weight_bodies
        weights = EncryptedWeights(operations, lambda place, level: load(model, bodies[place]))
    else:
        weights = ClearWeights(operations, program.scale, read_clear_weights(plan, model))
    inputs = iter(plan.request_bodies)

    def take(count: int) -> list[CiphertextTensor]:
        return [load(request, next(inputs)) for _ in range(count)]

    def take_features(step: int, form: Form) -> list[CiphertextTensor]:
        report(step, program.steps)
        return take(program.features)

    state = Carried(take(program.hidden), take(program.hidden)) if program.continues else None
    circuit = StepCircuit(operations, engine.params, program.places, program.curves, weights)
    decisions, last = run_steps(circuit, program.steps, take_features, state)
    report(program.steps, program.steps)
    return [*decisions, *last.hidden, *last.cell]
