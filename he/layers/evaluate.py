"""A network on ciphertexts in batch packing: rows are made when they are asked for, and dropped after use.

Canonical: sums and products of residues are exact in any order; complete sums are relinearised once and
rescaled where the plan says. So every correct evaluator gets the same bytes. Only as many rows of a layer
exist at a time as the next layer's windows need.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from he.backend import Engine
from he.compiler import get_weight_forms, plan_program
from he.errors import ParameterError
from he.formats import HEADER_BYTES, WORD_BYTES, compute_body_bytes
from he.layers.plan import (
    Step,
    complete_square,
    compute_power_forms,
    count_pool,
    get_powers,
    is_monic,
    strip,
)
from he.layers.rows import add_constants, add_rows, negate, quantise
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Polynomial,
    compute_shapes,
    get_sources,
)
from he.plan import Form
from he.program import Program
from he.residues import Residues, add_residues, build_row_matrix, compute_products
from he.tensor import CiphertextTensor, Constant

Report = Callable[[int, int], None]
"""Told (done, total) rows."""


class Ciphertexts:
    """Bodies of one form behind each other in a gated blob, read when needed."""

    def __init__(self, view: memoryview, offset: int, form: Form, ring: int) -> None:
        self._view = view
        self._offset = offset
        self._ring = ring
        self.form = form

    def get(self, index: int) -> Residues:
        """(2, level, N), a view into the blob."""
        words = 2 * self.form.level * self._ring
        at = self._offset + index * words * WORD_BYTES
        flat = np.frombuffer(self._view, dtype="<u8", offset=at, count=words)
        return flat.reshape(2, self.form.level, self._ring)


def place_weights(
    program: Program, model: memoryview, start: int
) -> dict[str, tuple[Ciphertexts, Ciphertexts]]:
    """Encrypted weights and biases by layer, as they lie in a model's bytes from `start` on."""
    params, offset = program.params, start
    placed = {}
    for step, form, bias, count, biases in get_weight_forms(program.options, plan_program(program)):
        weights = Ciphertexts(model, offset, form, params.ring)
        offset += count * compute_body_bytes(params, form.level)
        placed[step.layer.name] = (weights, Ciphertexts(model, offset, bias, params.ring))
        offset += biases * compute_body_bytes(params, bias.level)
    return placed


class BatchEvaluation:
    """One request through one program; every blob has passed the gate."""

    def __init__(
        self,
        engine: Engine,
        program: Program,
        weights: dict[str, tuple[Ciphertexts, Ciphertexts]],
        request: memoryview,
        report: Report,
    ) -> None:
        self.engine = engine
        self.params = program.params
        self.primes = program.params.primes
        self.network = program.network
        self.shapes = compute_shapes(program.network)
        self.absorb = program.options.absorb
        self.steps = {step.layer.name: step for step in plan_program(program)}
        self.weights = weights
        top = self.params.levels
        pixels = Form(top, Fraction(2**program.scale_bits))
        self.pixels = Ciphertexts(request, HEADER_BYTES, pixels, self.params.ring)
        self.rows: dict[tuple[str, int], Residues] = {}
        self.left = self.count_uses()
        self.matrices: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
        self.constants: dict[tuple[int, Form], Constant] = {}
        self.report = report
        self.done = 0
        self.total = sum(self.shapes[name][1] for name in self.steps)

    # --- rows on demand -----------------------------------------------------------------------

    def run(self) -> Iterator[tuple[int, Residues]]:
        """Index and row of the output, in order."""
        name = self.network.layers[-1].name
        for i in range(self.shapes[name][1]):
            yield i, self.compute(self.steps[name], i)

    def count_uses(self) -> Counter[tuple[str, int]]:
        """How often each row will be read."""
        uses: Counter[tuple[str, int]] = Counter()
        for step in self.steps.values():
            for i in range(self.shapes[step.layer.name][1]):
                uses.update(self.list_reads(step, i))
        return uses

    def list_reads(self, step: Step, i: int) -> list[tuple[str, int]]:
        """Rows that row `i` of a layer is made of."""
        layer = step.layer
        height = self.shapes[layer.source][1]
        match layer:
            case Convolution():
                first = i * layer.stride - layer.padding
                side = layer.weights.shape[2]
                return [(layer.source, r) for r in range(first, first + side) if 0 <= r < height]
            case AveragePool():
                return [(layer.source, i * layer.size + r) for r in range(layer.size)]
            case Dense() | GlobalAveragePool():
                return [(layer.source, r) for r in range(height)]
            case _:
                return [(source, i) for source in get_sources(layer)]

    def take(self, name: str, i: int) -> Residues:
        """A row for one reading; the last reading drops it. Callers do not change it."""
        key = (name, i)
        row = self.rows.get(key)
        if row is None:
            row = self.read_pixels(i) if name == INPUT else self.compute(self.steps[name], i)
            self.rows[key] = row
        self.left[key] -= 1
        if self.left[key] == 0:
            del self.rows[key]
        return row

    def read_pixels(self, i: int) -> Residues:
        channels, height, width = self.network.shape
        level = self.pixels.form.level
        row = np.empty((channels, width, 2, level, self.params.ring), dtype=np.uint64)
        for c in range(channels):
            for j in range(width):
                row[c, j] = self.pixels.get((c * height + i) * width + j)
        return row

    def compute(self, step: Step, i: int) -> Residues:
        layer = step.layer
        encrypted = layer.name in self.weights
        match layer:
            case Convolution() if encrypted:
                row = self.convolve_encrypted(step, layer, i)
            case Dense() if encrypted:
                row = self.multiply_encrypted(step, layer)
            case BatchNorm() if encrypted:
                row = self.scale_encrypted(step, layer, i)
            case Convolution() | AveragePool() | GlobalAveragePool() | Dense():
                row = self.finish(step, self.sum_clear(step, i))
            case BatchNorm():
                row = self.finish(step, self.scale_clear(step, layer, i))
            case Polynomial() if is_monic(layer):
                row = self.finish(step, self.square(step, layer, i))
            case Polynomial():
                row = self.evaluate_polynomial(step, layer, i)
            case Add():
                row = self.add(step, layer, i)
        self.done += 1
        self.report(self.done, self.total)
        return row

    # --- clear weights ------------------------------------------------------------------------

    def sum_clear(self, step: Step, i: int) -> Residues:
        """Complete sums of products by integers: matrix products on residues."""
        layer = step.layer
        channels, _, width = self.shapes[layer.name]
        reads = self.list_reads(step, i)
        matrix = self.get_matrix(step)
        parts, level = (3 if step.sources[0].raw else 2), step.product.level
        total = np.zeros((channels * width, parts, level, self.params.ring), dtype=np.uint64)
        if isinstance(layer, Convolution):
            missing = max(0, layer.padding - i * layer.stride)
            columns: list[Residues] = []
            for name, r in reads:
                columns += _flatten(self.take(name, r))
            each = matrix.shape[1] // layer.weights.shape[2]
            used = np.ascontiguousarray(matrix[:, missing * each : missing * each + len(columns)])
            compute_products(columns, used, self.primes[:level], total)
        else:
            more = np.empty_like(total)
            for number, (name, r) in enumerate(reads):
                columns = _flatten(self.take(name, r))
                used = self.get_dense_columns(layer, matrix, number)
                compute_products(columns, used, self.primes[:level], more)
                for index, prime in enumerate(self.primes[:level]):
                    add_residues(total[:, :, index], more[:, :, index], prime)
        row = total.reshape(channels, width, parts, level, self.params.ring)
        if isinstance(layer, Convolution | Dense):
            biases = [round(Fraction(float(value)) * step.product.scale) for value in layer.bias]
            add_constants(row, biases, self.primes)
        return row

    def get_matrix(self, step: Step) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        layer = step.layer
        found = self.matrices.get(layer.name)
        if found is not None:
            return found
        channels, _, width = self.shapes[layer.source]
        match layer:
            case Convolution():
                kernels = quantise(layer.weights, step.weight)
                found = build_row_matrix(kernels, width, layer.stride, layer.padding)
            case Dense():
                found = quantise(layer.weights, step.weight)
            case AveragePool() | GlobalAveragePool():
                # One row of the source to the row of sums; with absorption the factor is in the scale.
                size = layer.size if isinstance(layer, AveragePool) else width
                factor = (
                    1 if self.absorb else round(step.weight / count_pool(layer, self.shapes[layer.source]))
                )
                found = np.zeros((channels, width // size, channels, width), dtype=np.int64)
                for c in range(channels):
                    for j in range(width // size):
                        found[c, j, c, j * size : (j + 1) * size] = factor
                found = found.reshape(channels * (width // size), channels * width)
            case _:
                raise ParameterError(f"layer {layer.name!r} has no matrix")
        self.matrices[layer.name] = found
        return found

    def get_dense_columns(
        self, layer: object, matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]], r: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The columns of row `r` of the source, in the order [c][j]."""
        if not isinstance(layer, Dense):
            return matrix
        shape = self.shapes[layer.source]
        return np.ascontiguousarray(matrix.reshape(len(matrix), *shape)[:, :, r].reshape(len(matrix), -1))

    def scale_clear(self, step: Step, layer: BatchNorm, i: int) -> Residues:
        """scale x + shift by channel."""
        source = self.take(layer.source, i)
        row = np.empty_like(source)
        form = Form(step.product.level, step.weight)
        for c, value in enumerate(quantise(layer.scale, step.weight)):
            constant = self.get_constant(int(value), form)
            for j in range(source.shape[1]):
                tensor = self.engine.load(source[c, j], step.sources[0].form)
                row[c, j] = self.save(self.engine.multiply_constant(tensor, constant))
        shifts = [round(Fraction(float(value)) * step.product.scale) for value in layer.shift]
        add_constants(row, shifts, self.primes)
        return row

    # --- encrypted weights --------------------------------------------------------------------

    def convolve_encrypted(self, step: Step, layer: Convolution, i: int) -> Residues:
        """Sums of products of ciphertexts, relinearised once."""
        channels, _, width = self.shapes[layer.name]
        planes, _, across = self.shapes[layer.source]
        side = layer.weights.shape[2]
        first = i * layer.stride - layer.padding
        loaded = {
            r - first: self.load_row(self.take(name, r), step.sources[0].form)
            for name, r in self.list_reads(step, i)
        }
        weights = self.weights[layer.name][0]
        totals: list[list[CiphertextTensor | None]] = [[None] * width for _ in range(channels)]
        for o in range(channels):
            for a in range(planes):
                for k, pixels in loaded.items():
                    for m in range(side):
                        index = ((o * planes + a) * side + k) * side + m
                        weight = self.engine.load(weights.get(index), weights.form)
                        for j in range(width):
                            place = j * layer.stride - layer.padding + m
                            if 0 <= place < across:
                                self.accumulate(totals[o], j, pixels[a][place], weight)
        return self.finish_encrypted(step, totals)

    def multiply_encrypted(self, step: Step, layer: Dense) -> Residues:
        outputs = self.shapes[layer.name][0]
        channels, height, width = self.shapes[layer.source]
        weights = self.weights[layer.name][0]
        totals: list[list[CiphertextTensor | None]] = [[None] for _ in range(outputs)]
        for name, r in self.list_reads(step, 0):
            pixels = self.load_row(self.take(name, r), step.sources[0].form)
            for o in range(outputs):
                for c in range(channels):
                    for j in range(width):
                        index = ((o * channels + c) * height + r) * width + j
                        weight = self.engine.load(weights.get(index), weights.form)
                        self.accumulate(totals[o], 0, pixels[c][j], weight)
        return self.finish_encrypted(step, totals)

    def scale_encrypted(self, step: Step, layer: BatchNorm, i: int) -> Residues:
        pixels = self.load_row(self.take(layer.source, i), step.sources[0].form)
        weights = self.weights[layer.name][0]
        totals: list[list[CiphertextTensor | None]] = [[None] * len(line) for line in pixels]
        for c, line in enumerate(pixels):
            weight = self.engine.load(weights.get(c), weights.form)
            for j, pixel in enumerate(line):
                self.accumulate(totals[c], j, pixel, weight)
        return self.finish_encrypted(step, totals)

    def accumulate(
        self, totals: list[CiphertextTensor | None], j: int, value: CiphertextTensor, weight: CiphertextTensor
    ) -> None:
        product, total = self.engine.multiply(value, weight), totals[j]
        if total is None:
            totals[j] = product
        else:
            self.engine.add_inplace(total, product)

    def finish_encrypted(self, step: Step, totals: list[list[CiphertextTensor | None]]) -> Residues:
        """Relinearised, rescaled, and the encrypted bias added."""
        biases = self.weights[step.layer.name][1]
        form = step.value.form
        row = np.empty((len(totals), len(totals[0]), 2, form.level, self.params.ring), dtype=np.uint64)
        for c, line in enumerate(totals):
            bias = self.engine.load(biases.get(c), biases.form)
            for j, total in enumerate(line):
                if total is None:
                    raise ParameterError(f"layer {step.layer.name!r}: an empty sum has no ciphertext")
                self.engine.relinearize_inplace(total)
                self.engine.rescale_inplace(total)
                self.engine.add_inplace(total, bias)
                row[c, j] = self.save(total)
        return row

    # --- activations and additions ------------------------------------------------------------

    def square(self, step: Step, layer: Polynomial, i: int) -> Residues:
        """+-(x + d)^2 + e in three parts."""
        source = self.take(layer.source, i)
        form = step.sources[0].form
        shift, rest = complete_square(layer)
        if shift:
            source = source.copy()
            add_constants(source, [round(shift * form.scale)] * len(source), self.primes)
        row = np.empty((*source.shape[:2], 3, *source.shape[3:]), dtype=np.uint64)
        for c, j in np.ndindex(*source.shape[:2]):
            row[c, j] = self.save(self.engine.square(self.engine.load(source[c, j], form)))
        if strip(layer)[2] < 0:
            negate(row, self.primes)
        if rest:
            add_constants(row, [round(rest * step.product.scale)] * len(row), self.primes)
        return row

    def evaluate_polynomial(self, step: Step, layer: Polynomial, i: int) -> Residues:
        source = self.take(layer.source, i)
        coefficients = strip(layer)
        forms = compute_power_forms(layer, step.sources[0].form, self.params)
        level = step.product.level
        used = [power for power, value in enumerate(coefficients) if power and value != 0.0]
        constants = {
            power: self.get_constant(
                round(Fraction(coefficients[power]) * step.product.scale / forms[power].scale),
                Form(level, step.product.scale / forms[power].scale),
            )
            for power in used
        }
        free = self.get_constant(round(Fraction(coefficients[0]) * step.product.scale), step.product)
        out = step.value.form
        row = np.empty((*source.shape[:2], 2, out.level, self.params.ring), dtype=np.uint64)
        engine = self.engine
        for c, j in np.ndindex(*source.shape[:2]):
            powers = {1: engine.load(source[c, j], step.sources[0].form)}
            for power, a, b in get_powers(layer):
                powers[power] = self.multiply_powers(powers[a], powers[b])
            total: CiphertextTensor | None = None
            for power in used:
                lowered = engine.copy(powers[power])
                engine.drop_inplace(lowered, level)
                term = engine.multiply_constant(lowered, constants[power])
                if total is None:
                    total = term
                else:
                    engine.add_inplace(total, term)
            if total is None:
                raise ParameterError(f"layer {layer.name!r}: a constant is not evaluated on ciphertexts")
            engine.add_constant_inplace(total, free)
            engine.rescale_inplace(total)
            row[c, j] = self.save(total)
        return row

    def multiply_powers(self, a: CiphertextTensor, b: CiphertextTensor) -> CiphertextTensor:
        engine, level = self.engine, min(a.level, b.level)
        factors = []
        for factor in (a, b):
            lowered = engine.copy(factor)
            engine.drop_inplace(lowered, level)
            factors.append(lowered)
        product = engine.multiply(factors[0], factors[1])
        engine.relinearize_inplace(product)
        engine.rescale_inplace(product)
        return product

    def add(self, step: Step, layer: Add, i: int) -> Residues:
        rows = [self.take(name, i) for name in get_sources(layer)]
        if step.evened is not None:
            form = step.sources[step.evened].form
            one = self.get_constant(round(step.weight), Form(form.level, step.weight))
            source = rows[step.evened]
            changed = np.empty((*source.shape[:2], 2, form.level - 1, self.params.ring), dtype=np.uint64)
            for c, j in np.ndindex(*source.shape[:2]):
                tensor = self.engine.multiply_constant(self.engine.load(source[c, j], form), one)
                self.engine.rescale_inplace(tensor)
                changed[c, j] = self.save(tensor)
            rows[step.evened] = changed
        return add_rows(rows[0], rows[1], self.primes)

    # --- small parts --------------------------------------------------------------------------

    def finish(self, step: Step, row: Residues) -> Residues:
        """Relinearises and rescales complete sums, unless a later layer does."""
        if not step.relinearises and not step.rescales:
            return row
        form, engine = step.value.form, self.engine
        out = np.empty((*row.shape[:2], 2, form.level, self.params.ring), dtype=np.uint64)
        for c, j in np.ndindex(*row.shape[:2]):
            tensor = engine.load(row[c, j], step.product, components=row.shape[2])
            if step.relinearises:
                engine.relinearize_inplace(tensor)
            for _ in range(step.rescales):
                engine.rescale_inplace(tensor)
            out[c, j] = self.save(tensor)
        return out

    def load_row(self, row: Residues, form: Form) -> list[list[CiphertextTensor]]:
        return [[self.engine.load(body, form) for body in line] for line in row]

    def save(self, tensor: CiphertextTensor) -> Residues:
        flat = np.frombuffer(self.engine.save(tensor), dtype="<u8")
        return flat.reshape(tensor.components, tensor.level, self.params.ring)

    def get_constant(self, value: int, form: Form) -> Constant:
        found = self.constants.get((value, form))
        if found is None:
            found = self.engine.build_constant(value, form)
            self.constants[value, form] = found
        return found


def _flatten(row: Residues) -> list[Residues]:
    """(parts, level, N) each, in the order [c][j]."""
    return list(row.reshape(-1, *row.shape[2:]))
