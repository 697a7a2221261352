"""Encrypted fusion: encrypting tiles, the canonical forward circuit, decrypting what comes back.

Canonical: given tiles, weights and relinearisation keys, every correct peer gets the same bytes. Sums and
products modulo the primes are exact; only the two operations at the end round (see `he.forward`), and the
exact bias is added before them, so their place is fixed.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from he.backend import Engine
from he.context import PrivateContext, PublicContext
from he.errors import MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES, Body
from he.forward import FUSED_MAGIC, TILES_MAGIC, ForwardPlan
from he.gate import Source, check_bodies, check_header, check_length, open_source
from he.plan import Form
from he.residues import Residues, build_row_matrix, compute_products
from he.spec import IntegerWeights
from he.tensor import CiphertextTensor, Constant

Floats = NDArray[np.float64]
Position = tuple[int, int]
Report = Callable[[int, int], None]
"""Told (done, total)."""


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


# --- the gate ---------------------------------------------------------------------------------


def check_tiles(plan: ForwardPlan, source: Source) -> None:
    """Returns only for well-formed encrypted tiles for this very model and tile size.

    Raises: GateError.
    """
    view = open_source(source)
    check_length(view, plan.tiles_bytes)
    check_header(view, plan.build_header(TILES_MAGIC))
    check_bodies(plan.params, view, plan.get_tile_bodies())


def check_fused(plan: ForwardPlan, source: Source) -> None:
    """Returns only for a well-formed result of this very model and tile size.

    Raises: GateError.
    """
    view = open_source(source)
    check_length(view, plan.fused_bytes)
    check_header(view, plan.build_header(FUSED_MAGIC))
    check_bodies(plan.params, view, plan.get_fused_bodies())


# --- the requester ----------------------------------------------------------------------------


def encrypt_tiles(
    context: PrivateContext, plan: ForwardPlan, tiles: Floats, report: Report = _ignore
) -> bytes:
    """The encrypted tiles of `tiles` (n, A, P, P): two images in [0, 1], further planes in [-1, 1]; slots
    behind n are zero.

    Raises: ParameterError on a wrong shape; MagnitudeError on values out of range.
    """
    spec, slots = plan.spec, plan.params.slots
    if tiles.ndim != 4 or not 1 <= len(tiles) <= slots:
        raise ParameterError(f"tiles: expected 1 to {slots} of them, got shape {tiles.shape}")
    if tiles.shape[1:] != (spec.inputs, spec.patch, spec.patch):
        expected = (len(tiles), spec.inputs, spec.patch, spec.patch)
        raise ParameterError(f"tiles: expected shape {expected}, got {tiles.shape}")
    if not bool((np.abs(tiles) <= 1.0).all() and (tiles[:, :2] >= 0.0).all()):
        raise MagnitudeError("tiles: values must be finite, of images in [0, 1], of other planes in [-1, 1]")
    engine, bodies = context.public.engine, plan.get_tile_bodies()
    blob = bytearray(plan.tiles_bytes)
    blob[:HEADER_BYTES] = plan.build_header(TILES_MAGIC)
    for index, (body, column) in enumerate(zip(bodies, tiles.reshape(len(tiles), -1).T, strict=True)):
        data = engine.save(context.encrypt(column, body.form))
        blob[body.offset : body.offset + len(data)] = data
        report(index + 1, len(bodies))
    return bytes(blob)


def decrypt_fused(private: PrivateContext, plan: ForwardPlan, fused: Source) -> Floats:
    """F' (slots, O, O) of a peer's result.

    Raises: GateError.
    """
    check_fused(plan, fused)
    view, side = open_source(fused), plan.spec.output
    values = np.empty((plan.params.slots, side**2))
    for index, body in enumerate(plan.get_fused_bodies()):
        data = view[body.offset : body.offset + body.get_length(plan.params)]
        values[:, index] = private.decrypt_body(data, body.form)
    return values.reshape(-1, side, side)


# --- the peer ---------------------------------------------------------------------------------


def compute_fused(
    context: PublicContext, plan: ForwardPlan, tiles: Source, report: Report = _ignore
) -> bytes:
    """The canonical F' of encrypted tiles; `report` is told how many rows of the hidden layer are done.

    Raises: GateError on malformed tiles; MissingKeyError without relinearisation keys.
    """
    if context.relin_keys is None:
        raise MissingKeyError("encrypted fusion needs relinearisation keys")
    if context.params != plan.params:
        raise ParameterError(f"{context!r} does not belong to {plan.params.name}")
    check_tiles(plan, tiles)
    output = _Forward(context.engine, plan, open_source(tiles)).run(report)
    blob = bytearray(plan.fused_bytes)
    blob[:HEADER_BYTES] = plan.build_header(FUSED_MAGIC)
    for body, tensor in zip(plan.get_fused_bodies(), output, strict=True):
        data = context.engine.save(tensor)
        blob[body.offset : body.offset + len(data)] = data
    return bytes(blob)


class _Forward:
    """One evaluation, a row of hidden positions at a time."""

    def __init__(self, engine: Engine, plan: ForwardPlan, view: memoryview) -> None:
        self.engine = engine
        self.plan = plan
        self.spec = plan.spec
        self.view = view
        self.bodies = plan.get_tile_bodies()
        self.weights: IntegerWeights = plan.spec.split(plan.weights)

    def run(self, report: Report) -> Iterator[CiphertextTensor]:
        """F' [i][j], each at the output's form."""
        spec, taps = self.spec, self.build_taps()
        matrix, biases = build_row_matrix(self.weights.w, self.spec.patch), self.build_biases()
        output: dict[Position, CiphertextTensor] = {}
        for i in range(spec.hidden):
            row = self.compute_hidden_row(i, matrix)
            for c in range(spec.channels):
                for j in range(spec.hidden):
                    hidden = self.engine.load(row[c * spec.hidden + j], self.plan.hidden)
                    self.engine.add_constant_inplace(hidden, biases[c])
                    self.spread(output, self.engine.square(hidden), taps[c], (i, j))
            report(i + 1, spec.hidden)
            # What no later row reaches is complete.
            if i - spec.second + 1 >= 0:
                for j in range(spec.output):
                    yield self.finish(output.pop((i - spec.second + 1, j)))

    def build_biases(self) -> list[Constant]:
        """b by channel at the scale of z."""
        factor = 2**self.plan.data_bits
        return [self.engine.build_constant(int(value) * factor, self.plan.hidden) for value in self.weights.b]

    def build_taps(self) -> list[list[tuple[int, int, Constant]]]:
        """v by channel."""
        form = Form(self.plan.hidden.level, self.plan.hidden.scale / self.plan.input.scale)
        side = range(self.spec.second)
        return [
            [(k, m, self.engine.build_constant(int(plane[k, m]), form)) for k in side for m in side]
            for plane in self.weights.v
        ]

    def compute_hidden_row(self, i: int, matrix: NDArray[np.int64]) -> Residues:
        """(C Z, 2, level, ring): residues of w * X along row i."""
        spec, params, level = self.spec, self.plan.params, self.plan.input.level
        pixels = [
            self.get_residues(self.bodies[(a * spec.patch + i + k) * spec.patch + j])
            for k in range(spec.kernel)
            for a in range(spec.inputs)
            for j in range(spec.patch)
        ]
        row = np.empty((len(matrix), 2, level, params.ring), dtype=np.uint64)
        compute_products(pixels, matrix, params.primes[:level], row)
        return row

    def get_residues(self, body: Body) -> Residues:
        """(2, level, ring), a view into the request."""
        level, ring = body.form.level, self.plan.params.ring
        flat = np.frombuffer(self.view, dtype="<u8", offset=body.offset, count=2 * level * ring)
        return flat.reshape(2, level, ring)

    def spread(
        self,
        output: dict[Position, CiphertextTensor],
        square: CiphertextTensor,
        taps: list[tuple[int, int, Constant]],
        position: Position,
    ) -> None:
        """Adds v z^2 to every output that this hidden position reaches."""
        side = self.spec.output
        for k, m, weight in taps:
            i, j = position[0] - k, position[1] - m
            if not (0 <= i < side and 0 <= j < side):
                continue
            term = self.engine.multiply_constant(square, weight)
            if (i, j) in output:
                self.engine.add_inplace(output[i, j], term)
            else:
                output[i, j] = term

    def finish(self, total: CiphertextTensor) -> CiphertextTensor:
        """F' of a complete sum: the exact bias, then the two operations that round."""
        bias = self.weights.compute_tied_bias() * 4**self.plan.data_bits
        self.engine.add_constant_inplace(total, self.engine.build_constant(bias, self.plan.product))
        self.engine.relinearize_inplace(total)
        self.engine.rescale_inplace(total)
        return total
