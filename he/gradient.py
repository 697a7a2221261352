"""The canonical circuits: encrypted gradients and loss of the polynomial network.

Canonical means: given batch, weights and relinearisation keys, every correct implementation gets
the same bytes. Additions and products modulo the primes are exact, so their order is free;
relinearisation and rescaling round, so they happen here and nowhere else:

1. h = z^2 is rescaled in three components;
2. F' = sum v h is relinearised as a complete sum, before d is added;
3. h, dropped to the level of delta, is relinearised there (gradients only);
4. delta = (v * G) z is rescaled in three components, then relinearised;
5. the complete sums of the gradients of w and v are rescaled in three components, then relinearised;
6. the complete sum of the loss, constant included, is relinearised, then rescaled.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from he.backend import Engine
from he.context import PublicContext
from he.errors import MissingKeyError, ParameterError
from he.formats import (
    VALIDATION_FLAG,
    BatchLayout,
    Body,
    Magic,
    build_batch_layout,
    build_bundle_layout,
    build_header,
)
from he.gate import Source, check_batch, open_source
from he.plan import Form, Plan, build_plan, check_magnitudes
from he.residues import Residues, build_row_matrix, compute_products
from he.spec import IntegerWeights, PolynomialSpec
from he.tensor import CiphertextTensor, Constant

Position = tuple[int, int]


def compute_gradient_bundle(
    context: PublicContext,
    spec: PolynomialSpec,
    weights: Sequence[int],
    batch: Source,
    *,
    checked: bool = False,
) -> bytes:
    """The canonical gradient bundle of a batch, training or validation, at integer weights.

    `checked` says that the batch has already passed `gate.check_batch`.

    Raises: GateError on a malformed batch; MissingKeyError without relinearisation keys;
    MagnitudeError if a message could wrap at these weights.
    """
    circuit = _Circuit(context, spec, weights, batch, checked=checked, loss=False)
    layout = build_bundle_layout(circuit.plan)
    bundle = bytearray(layout.length)
    header = build_header(Magic.BUNDLE, context.params, spec)
    bundle[: len(header)] = header
    for index, tensor in circuit.compute_gradients():
        body = layout.bodies[index]
        if (tensor.level, tensor.scale) != (body.form.level, body.form.scale):
            raise ParameterError(f"gradient {index} came out as {tensor!r}, not as planned")
        bundle[body.offset : body.offset + body.get_length(context.params)] = circuit.engine.save(tensor)
    return bytes(bundle)


def compute_loss_ciphertext(
    context: PublicContext,
    spec: PolynomialSpec,
    weights: Sequence[int],
    batch: Source,
    *,
    checked: bool = False,
) -> bytes:
    """The canonical loss ciphertext, one loss a slot, of a validation batch at integer weights.

    Raises: ParameterError on a training batch, otherwise as `compute_gradient_bundle`.
    """
    circuit = _Circuit(context, spec, weights, batch, checked=checked, loss=True)
    tensor = circuit.compute_loss()
    return build_header(Magic.LOSS, context.params, spec) + bytes(circuit.engine.save(tensor))


class _Circuit:
    """One evaluation; tensors are dropped as soon as nothing needs them."""

    def __init__(
        self,
        context: PublicContext,
        spec: PolynomialSpec,
        weights: Sequence[int],
        batch: Source,
        *,
        checked: bool,
        loss: bool,
    ) -> None:
        if context.relin_keys is None:
            raise MissingKeyError("the circuits need relinearisation keys")
        self.spec = spec
        self.plan: Plan = build_plan(context.params, spec)
        self.weights: IntegerWeights = spec.split(weights)
        check_magnitudes(self.plan, weights, loss=loss)
        self.view = open_source(batch)
        self.layout = _find_layout(context, spec, self.plan, self.view, checked=checked)
        self.engine: Engine = context.engine

    # --- forward ------------------------------------------------------------------------------

    def compute_hidden(self) -> Iterator[tuple[int, Position, CiphertextTensor]]:
        """z = w * X + b by position and channel, one row of positions after the other."""
        spec, engine, plan = self.spec, self.engine, self.plan
        units = plan.hidden.scale / plan.weight_scale
        biases = [engine.build_constant(int(value) * int(units), plan.hidden) for value in self.weights.b]
        matrix = build_row_matrix(self.weights.w, self.spec.patch)
        for i in range(spec.hidden):
            row = self.compute_hidden_row(i, matrix)
            for j in range(spec.hidden):
                for c in range(spec.channels):
                    hidden = engine.load(row[c * spec.hidden + j], plan.hidden)
                    engine.add_constant_inplace(hidden, biases[c])
                    yield c, (i, j), hidden

    def compute_hidden_row(self, i: int, matrix: NDArray[np.int64]) -> Residues:
        """(C Z, 2, level, ring): residues of w * X along row i."""
        spec, params, level = self.spec, self.plan.params, self.plan.input.level
        pixels = [
            self.get_residues(self.layout.inputs[(a * spec.patch + i + k) * spec.patch + j])
            for k in range(spec.kernel)
            for a in range(spec.inputs)
            for j in range(spec.patch)
        ]
        row = np.empty((len(matrix), 2, level, params.ring), dtype=np.uint64)
        compute_products(pixels, matrix, params.primes[:level], row)
        return row

    def compute_square(self, hidden: CiphertextTensor) -> CiphertextTensor:
        """h = z^2, rescaled, in three components."""
        square = self.engine.square(hidden)
        self.engine.rescale_inplace(square)
        return square

    def compute_taps(self) -> list[list[tuple[int, int, Constant]]]:
        """v by channel as constants at the output's level."""
        spec = self.spec
        return [
            [
                (k, m, self.build_weight(int(self.weights.v[c, k, m]), self.plan.output.level))
                for k, m in _grid(spec.second)
            ]
            for c in range(spec.channels)
        ]

    def add_to_output(
        self,
        output: dict[Position, CiphertextTensor],
        square: CiphertextTensor,
        taps: list[tuple[int, int, Constant]],
        position: Position,
    ) -> None:
        for k, m, weight in taps:
            place = (position[0] - k, position[1] - m)
            if self.is_output(place):
                output[place] = self.accumulate(
                    output.get(place), self.engine.multiply_constant(square, weight)
                )

    def finish_output(self, output: dict[Position, CiphertextTensor]) -> None:
        """F' = sum v h + d, in two components."""
        bias = self.engine.build_constant(
            self.plan.compute_output_bias(self.weights.compute_tied_bias()), self.plan.output
        )
        for tensor in output.values():
            self.engine.relinearize_inplace(tensor)
            self.engine.add_constant_inplace(tensor, bias)

    def compute_stencil(self, output: dict[Position, CiphertextTensor]) -> dict[Position, CiphertextTensor]:
        """M F' with M = I + mu D'D on the output window."""
        engine, mu = self.engine, self.spec.gradient_weight
        unit = Form(self.plan.output.level, self.plan.output.scale / self.plan.output.scale)
        spread = engine.build_constant(mu, unit)
        scaled = {place: engine.multiply_constant(tensor, spread) for place, tensor in output.items()}
        result = {}
        for (i, j), tensor in output.items():
            total = engine.copy(tensor)
            for neighbour in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if neighbour in output:
                    engine.add_inplace(total, scaled[i, j])
                    engine.subtract_inplace(total, scaled[neighbour])
            result[i, j] = total
        return result

    # --- loss ---------------------------------------------------------------------------------

    def compute_loss(self) -> CiphertextTensor:
        """sum_o F'_o ((M F')_o - 2 R_o) + K, relinearised and rescaled once."""
        if self.layout.constant is None:
            raise ParameterError("a training batch has no encrypted constant of the loss")
        engine, taps = self.engine, self.compute_taps()
        output: dict[Position, CiphertextTensor] = {}
        for c, position, hidden in self.compute_hidden():
            self.add_to_output(output, self.compute_square(hidden), taps[c], position)
        self.finish_output(output)
        stencil = self.compute_stencil(output)
        total = self.load(self.layout.constant)
        for place, body in self.get_targets():
            target = self.load(body)
            engine.subtract_inplace(stencil[place], target)
            engine.subtract_inplace(stencil[place], target)
            engine.add_inplace(total, engine.multiply(output[place], stencil[place]))
        engine.relinearize_inplace(total)
        engine.rescale_inplace(total)
        return total

    # --- gradients ----------------------------------------------------------------------------

    def compute_gradients(self) -> Iterator[tuple[int, CiphertextTensor]]:
        """Every gradient entry with its index, in no particular order."""
        spec, engine, low = self.spec, self.engine, self.plan.delta.level
        taps = self.compute_taps()
        hidden: list[dict[Position, CiphertextTensor]] = [{} for _ in range(spec.channels)]
        squares: list[dict[Position, CiphertextTensor]] = [{} for _ in range(spec.channels)]
        output: dict[Position, CiphertextTensor] = {}
        for c, position, z in self.compute_hidden():
            square = self.compute_square(z)
            self.add_to_output(output, square, taps[c], position)
            engine.drop_inplace(square, low)
            engine.relinearize_inplace(square)
            engine.drop_inplace(z, self.plan.output.level)
            squares[c][position], hidden[c][position] = square, z
        self.finish_output(output)
        residual = self.compute_stencil(output)
        output.clear()
        for place, body in self.get_targets():
            engine.subtract_inplace(residual[place], self.load(body))
        residual_low = {place: engine.copy(tensor) for place, tensor in residual.items()}
        for tensor in residual_low.values():
            engine.drop_inplace(tensor, low)
        data = [self.load(body, low) for body in self.layout.inputs]
        for c in range(spec.channels):
            yield from self.compute_second_layer(c, squares[c], residual_low)
            squares[c].clear()
            deltas = self.compute_deltas(taps[c], hidden[c], residual)
            hidden[c].clear()
            yield from self.compute_first_layer(c, deltas, data)
        total: CiphertextTensor | None = None
        for tensor in residual_low.values():
            total = self.accumulate(total, tensor)
        yield spec.parameters, _require(total)

    def compute_second_layer(
        self, c: int, squares: dict[Position, CiphertextTensor], residual: dict[Position, CiphertextTensor]
    ) -> Iterator[tuple[int, CiphertextTensor]]:
        """dL/dv[c] = sum_o G_o h_(o+k)."""
        spec = self.spec
        first = spec.second_start + c * spec.second**2
        for k, m in _grid(spec.second):
            total: CiphertextTensor | None = None
            for (i, j), tensor in residual.items():
                total = self.accumulate(total, self.engine.multiply(tensor, squares[i + k, j + m]))
            yield first + k * spec.second + m, self.finish_gradient(_require(total))

    def compute_deltas(
        self,
        taps: list[tuple[int, int, Constant]],
        hidden: dict[Position, CiphertextTensor],
        residual: dict[Position, CiphertextTensor],
    ) -> dict[Position, CiphertextTensor]:
        """delta = (v * G) z by position, in two components."""
        deltas = {}
        for (i, j), z in hidden.items():
            total: CiphertextTensor | None = None
            for k, m, weight in taps:
                tensor = residual.get((i - k, j - m))
                if tensor is not None:
                    total = self.accumulate(total, self.engine.multiply_constant(tensor, weight))
            delta = self.engine.multiply(_require(total), z)
            self.engine.rescale_inplace(delta)
            self.engine.relinearize_inplace(delta)
            deltas[i, j] = delta
        return deltas

    def compute_first_layer(
        self, c: int, deltas: dict[Position, CiphertextTensor], data: list[CiphertextTensor]
    ) -> Iterator[tuple[int, CiphertextTensor]]:
        """dL/dw[c] = sum_z delta_z X_(z+k) and dL/db[c] = sum_z delta_z."""
        spec = self.spec
        index, low = spec.get_first_start(c), spec.get_inset(c)
        for a in range(spec.inputs):
            for k, m in _grid(spec.kernels[c]):
                total: CiphertextTensor | None = None
                for (i, j), delta in deltas.items():
                    pixel = data[(a * spec.patch + i + low + k) * spec.patch + j + low + m]
                    total = self.accumulate(total, self.engine.multiply(delta, pixel))
                yield index, self.finish_gradient(_require(total))
                index += 1
        total = None
        for delta in deltas.values():
            total = self.accumulate(total, delta)
        yield spec.first_weights + c, _require(total)

    def finish_gradient(self, total: CiphertextTensor) -> CiphertextTensor:
        self.engine.rescale_inplace(total)
        self.engine.relinearize_inplace(total)
        return total

    # --- small parts --------------------------------------------------------------------------

    def accumulate(self, total: CiphertextTensor | None, term: CiphertextTensor) -> CiphertextTensor:
        """Adds `term`; the first term becomes the sum itself and must not be used again."""
        if total is None:
            return term
        self.engine.add_inplace(total, term)
        return total

    def build_weight(self, value: int, level: int) -> Constant:
        return self.engine.build_constant(value, Form(level, self.plan.weight_scale))

    def is_output(self, place: Position) -> bool:
        return 0 <= place[0] < self.spec.output and 0 <= place[1] < self.spec.output

    def get_targets(self) -> Iterator[tuple[Position, Body]]:
        return zip(_grid(self.spec.output), self.layout.targets, strict=True)

    def load(self, body: Body, level: int | None = None) -> CiphertextTensor:
        """A ciphertext of the batch, taken straight at a lower level where asked: fewer primes."""
        kept = body.form.level if level is None else level
        return self.engine.load(self.get_residues(body)[:, :kept], Form(kept, body.form.scale))

    def get_residues(self, body: Body) -> Residues:
        """(2, level, ring), a view into the batch."""
        level, ring = body.form.level, self.plan.params.ring
        flat = np.frombuffer(self.view, dtype="<u8", offset=body.offset, count=2 * level * ring)
        return flat.reshape(2, level, ring)


def _grid(side: int) -> Iterator[Position]:
    return ((i, j) for i in range(side) for j in range(side))


def _require(total: CiphertextTensor | None) -> CiphertextTensor:
    if total is None:
        raise ParameterError("an empty sum has no ciphertext")
    return total


def _find_layout(
    context: PublicContext, spec: PolynomialSpec, plan: Plan, view: memoryview, *, checked: bool
) -> BatchLayout:
    if checked:
        flagged = view[: len(build_header(Magic.BATCH, context.params, spec))]
        validation = flagged == build_header(Magic.BATCH, context.params, spec, VALIDATION_FLAG)
    else:
        validation = check_batch(context.params, spec, view)
    return build_batch_layout(plan, validation=validation)
