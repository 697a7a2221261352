"""Slots are patches: one ciphertext a pixel position, so nothing can mix patches."""

import numpy as np
from numpy.typing import NDArray

from he.context import PrivateContext, PublicContext
from he.errors import ImaginaryError, MagnitudeError, ParameterError
from he.formats import (
    VALIDATION_FLAG,
    Body,
    Magic,
    build_batch_layout,
    build_bundle_layout,
    build_header,
    build_loss_layout,
)
from he.gate import Source, check_batch, check_bundle, check_loss, open_source
from he.plan import build_plan, get_input_bounds
from he.spec import PolynomialSpec

Floats = NDArray[np.float64]

IMAGINARY_LIMIT = 1e-4
"""Far above the error of an honest encryption, about 1e-6, and far below a grey level."""


def encrypt_batch(
    context: PublicContext | PrivateContext,
    spec: PolynomialSpec,
    inputs: Floats,
    target: Floats,
    constant: Floats | None = None,
) -> bytes:
    """A batch blob of `inputs` (n, A, P, P), `target` R (n, O, O) and, for validation, the loss's
    `constant` (n,) = |S - T|^2 + mu |DS - g|^2; slots behind n are zero.

    Raises: ParameterError on wrong shapes; MagnitudeError on values outside the plan's bounds.
    """
    public = context.public if isinstance(context, PrivateContext) else context
    plan = build_plan(public.params, spec)
    count = len(inputs)
    if not 1 <= count <= public.params.slots:
        raise ParameterError(f"a batch holds 1 to {public.params.slots} patches, not {count}")
    _check_shape("inputs", inputs, (count, spec.inputs, spec.patch, spec.patch))
    _check_shape("target", target, (count, spec.output, spec.output))
    bounds = get_input_bounds(spec)
    _check_bound("inputs", inputs, bounds.data)
    _check_bound("target", target, bounds.target)
    columns = [*inputs.reshape(count, -1).T, *target.reshape(count, -1).T]
    if constant is not None:
        _check_shape("constant", constant, (count,))
        _check_bound("constant", constant, bounds.constant)
        columns.append(constant)
    layout = build_batch_layout(plan, validation=constant is not None)
    blob = bytearray(layout.length)
    header = build_header(Magic.BATCH, public.params, spec, 0 if constant is None else VALIDATION_FLAG)
    blob[: len(header)] = header
    for body, column in zip(layout.bodies, columns, strict=True):
        data = public.engine.save(public.encrypt(column, body.form))
        blob[body.offset : body.offset + len(data)] = data
    return bytes(blob)


def decrypt_batch(
    private: PrivateContext, spec: PolynomialSpec, batch: Source
) -> tuple[Floats, Floats, Floats | None]:
    """Inputs (slots, A, P, P), target (slots, O, O) and the constant (slots,) of a validation batch.

    Raises: GateError; ImaginaryError if a slot holds more than the real number that is returned: a
    product of two such slots would bring the hidden part back into the real one.
    """
    validation = check_batch(private.params, spec, batch)
    layout = build_batch_layout(build_plan(private.params, spec), validation=validation)
    view = open_source(batch)
    slots = private.params.slots
    planes = _decrypt_real(private, view, layout.inputs)
    inputs = planes.reshape(slots, spec.inputs, spec.patch, spec.patch)
    target = _decrypt_real(private, view, layout.targets).reshape(slots, spec.output, spec.output)
    constant = None if layout.constant is None else _decrypt_real(private, view, (layout.constant,))[:, 0]
    return inputs, target, constant


def decrypt_bundle(private: PrivateContext, spec: PolynomialSpec, bundle: Source) -> Floats:
    """(slots, gradients): each patch's gradient of its own loss, in the spec's order.

    The loss of a patch is [sum (F - T)^2 + mu sum |grad F - g|^2] / O^2; the circuit leaves out the
    factors of differentiation, which are put in here.

    Raises: GateError.
    """
    check_bundle(private.params, spec, bundle)
    layout = build_bundle_layout(build_plan(private.params, spec))
    values = _decrypt(private, open_source(bundle), layout.bodies)
    factors = np.full(spec.gradients, 2.0 / spec.output**2)
    factors[: spec.second_start] *= 2.0
    gradients: Floats = values * factors
    return gradients


def decrypt_loss(private: PrivateContext, spec: PolynomialSpec, loss: Source) -> Floats:
    """(slots,): each patch's loss.

    Raises: GateError.
    """
    check_loss(private.params, spec, loss)
    layout = build_loss_layout(build_plan(private.params, spec))
    return _decrypt(private, open_source(loss), layout.bodies)[:, 0] / spec.output**2


def _decrypt(private: PrivateContext, view: memoryview, bodies: tuple[Body, ...]) -> Floats:
    values = np.empty((private.params.slots, len(bodies)))
    for index, body in enumerate(bodies):
        data = view[body.offset : body.offset + body.get_length(private.params)]
        values[:, index] = private.decrypt_body(data, body.form)
    return values


def _decrypt_real(private: PrivateContext, view: memoryview, bodies: tuple[Body, ...]) -> Floats:
    values = np.empty((private.params.slots, len(bodies)))
    for index, body in enumerate(bodies):
        data = view[body.offset : body.offset + body.get_length(private.params)]
        slots = private.decrypt_body_complex(data, body.form)
        largest = float(np.abs(slots.imag).max())
        if not largest <= IMAGINARY_LIMIT:
            raise ImaginaryError(f"body {index}: a slot has an imaginary part above {IMAGINARY_LIMIT:.3g}")
        values[:, index] = slots.real
    return values


def _check_shape(name: str, values: Floats, expected: tuple[int, ...]) -> None:
    if values.shape != expected:
        raise ParameterError(f"{name}: expected shape {expected}, got {values.shape}")


def _check_bound(name: str, values: Floats, bound: int) -> None:
    if not bool((np.abs(values) <= bound).all()):
        raise MagnitudeError(f"{name}: values must be finite and lie in [-{bound}, {bound}]")
