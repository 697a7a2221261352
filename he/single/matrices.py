"""Linear layers as diagonals: y = sum over d of v_d * rotate(x, d), grouped by baby and giant steps.

A layer is a sparse matrix from input slots to output slots. All entries with the same distance d between
them make one vector v_d (Halevi and Shoup, CRYPTO 2014), a convolution's one for each tap and pair of
channels' places. With d = a + g, rotations by a are made once and rotations by g after summing up:
y = sum over g of rotate(sum over a of v'_{g,a} * rotate(x, a), g). Each kind is made by going from one to the
next, so that few different steps, and so few keys, are needed. The library does not share a decomposition
between rotations of one ciphertext (hoisting), so their number is what is kept small.

A dense layer's outputs are spread over the slots modulo the least power of two that holds them; partial
sums are then added up by rotations by powers of two ('folds'), and the result repeats itself.

What is multiplied depends on shapes alone, never on weights: zeros are multiplied like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError
from he.network import BatchNorm, Convolution, Dense, GlobalAveragePool
from he.single.slots import Indices, Layout

Floats = NDArray[np.float64]
LinearLayer = Convolution | BatchNorm | Dense | GlobalAveragePool
Diagonal = tuple[int, int, int]
"""Output ciphertext, input ciphertext, distance."""

_MAX_ENTRIES = 1 << 22
"""Of one output channel or row; bounds memory."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Some entries of a matrix: each adds value times the input's value to the output's."""

    outputs: Indices
    """(n,) places among the output's values."""
    inputs: Indices
    values: Floats


def iterate_entries(layer: LinearLayer, source: Layout, target: Layout) -> Iterator[Entries]:
    """The matrix by output channel; entries of borders that padding leaves out are not there."""
    match layer:
        case Convolution():
            yield from _iterate_convolution(layer, source, target)
        case BatchNorm():
            size = source.shape[1] * source.shape[2]
            for channel, scale in enumerate(layer.scale):
                index = np.arange(channel * size, (channel + 1) * size)
                yield Entries(index, index, np.full(size, scale))
        case Dense():
            width = np.arange(layer.weights.shape[1])
            for row, weights in enumerate(layer.weights):
                yield Entries(np.full(len(width), row), width, np.asarray(weights, dtype=np.float64))
        case GlobalAveragePool():
            size = source.shape[1] * source.shape[2]
            for channel in range(source.shape[0]):
                index = np.arange(channel * size, (channel + 1) * size)
                yield Entries(np.full(size, channel), index, np.full(size, 1 / size))


def _iterate_convolution(layer: Convolution, source: Layout, target: Layout) -> Iterator[Entries]:
    (inputs, height, width), (outputs, rows, columns) = source.shape, target.shape
    kernel = layer.weights.shape[2]
    if inputs * kernel**2 * rows * columns > _MAX_ENTRIES:
        raise ParameterError(f"layer {layer.name!r}: too large for packing a single image")
    # Axes: input channel, kernel row and column, output row and column.
    channel, ky, kx, y, x = np.indices((inputs, kernel, kernel, rows, columns)).reshape(5, -1)
    from_y, from_x = y * layer.stride + ky - layer.padding, x * layer.stride + kx - layer.padding
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    channel, ky, kx = channel[inside], ky[inside], kx[inside]
    to = (y * columns + x)[inside]
    place = (channel * height + from_y[inside]) * width + from_x[inside]
    for output in range(outputs):
        yield Entries(output * rows * columns + to, place, layer.weights[output, channel, ky, kx])


def get_bias(layer: LinearLayer, target: Layout) -> Floats:
    """(C H W) in C order."""
    size = target.shape[1] * target.shape[2]
    match layer:
        case Convolution() | Dense():
            return np.repeat(layer.bias, size)
        case BatchNorm():
            return np.repeat(layer.shift, size)
        case GlobalAveragePool():
            return np.zeros(target.shape[0] * size)


@dataclass(frozen=True, slots=True)
class Frame:
    """How distances and vectors are counted between two layouts."""

    source: Layout
    target: Layout
    folded: bool
    """Whether partial sums are folded: of dense layers and global means."""

    @property
    def modulus(self) -> int:
        """Distances are taken modulo it."""
        if self.folded:
            return min(self.source.period, self.target.period)
        return self.source.period

    @property
    def period(self) -> int:
        """Of the vectors that are multiplied, and of the sums before they are folded."""
        return max(self.source.period, self.target.period)

    @property
    def folds(self) -> tuple[int, ...]:
        """Rotations that add up partial sums, the last with the largest step."""
        if not self.folded:
            return ()
        steps, step = [], self.target.period
        while step < self.source.period:
            steps.append(step)
            step *= 2
        return tuple(steps)

    def place(self, entries: Entries) -> tuple[Indices, Indices, Indices, Indices]:
        """Output ciphertext, input ciphertext, distance and slot of the vector, of each entry."""
        (into, to), (out_of, at) = self.target.get_places(), self.source.get_places()
        to, at = to[entries.outputs], at[entries.inputs]
        distances = (at - to) % self.modulus
        slots = (at - distances) % self.source.period if self.folds else to
        return into[entries.outputs], out_of[entries.inputs], distances, slots


@dataclass(frozen=True, slots=True)
class Sum:
    """One giant step's terms: which rotated inputs are multiplied and added up."""

    giant: int
    terms: tuple[tuple[int, int], ...]
    """(input ciphertext, baby step), each with a vector of its own."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a linear layer multiplies, rotates and adds; known from shapes."""

    frame: Frame
    babies: tuple[int, ...]
    """Ascending."""
    sums: tuple[tuple[Sum, ...], ...]
    """By output ciphertext; giant steps ascending."""

    @property
    def vectors(self) -> int:
        return sum(len(part.terms) for parts in self.sums for part in parts)

    @property
    def relinearisations(self) -> int:
        """With encrypted weights: one of each sum that is rotated, and of its last."""
        return sum(len(parts) for parts in self.sums)

    def count_rotations(self) -> int:
        inputs = self.frame.source.count
        giants = sum(sum(part.giant != 0 for part in parts) for parts in self.sums)
        folds = len(self.frame.folds) * self.frame.target.count
        return inputs * sum(baby != 0 for baby in self.babies) + giants + folds

    def get_rotations(self) -> set[int]:
        """Steps that keys are needed for."""
        steps = set(iterate_chain(self.babies)) | set(self.frame.folds)
        for parts in self.sums:
            steps |= set(iterate_chain([part.giant for part in parts]))
        return steps


def iterate_chain(steps: Iterator[int] | tuple[int, ...] | list[int]) -> Iterator[int]:
    """From 0 through ascending steps, how far it is to the next; without what is at 0."""
    last = 0
    for step in steps:
        if step > last:
            yield step - last
        last = step


def find_diagonals(layer: LinearLayer, frame: Frame) -> set[Diagonal]:
    """All that hold an entry."""
    found: set[Diagonal] = set()
    for entries in iterate_entries(layer, frame.source, frame.target):
        into, out_of, distances, _ = frame.place(entries)
        keys = (into * frame.source.count + out_of) * frame.modulus + distances
        for key in np.unique(keys).tolist():
            rest, distance = divmod(key, frame.modulus)
            found.add((*divmod(rest, frame.source.count), distance))
    return found


def build_matrix(layer: LinearLayer, frame: Frame, *, encrypted: bool) -> Matrix:
    """The grouping with the fewest changes of key.

    Raises: ParameterError if the layer is too large.
    """
    diagonals = sorted(find_diagonals(layer, frame))
    distances = np.array([distance for _, _, distance in diagonals])
    best: tuple[int, int, Matrix] | None = None
    width = 1
    while width <= frame.modulus:
        for babies in {False: distances % width, True: _center(distances, width)}.values():
            matrix = _group(frame, diagonals, babies)
            cost = matrix.count_rotations() + (matrix.relinearisations if encrypted else 0)
            rank = (cost, len(matrix.get_rotations()))
            if best is None or rank < best[:2]:
                best = (*rank, matrix)
        width *= 2
    if best is None:
        raise ParameterError(f"layer {layer.name!r}: an empty matrix")
    return best[2]


def _center(distances: Indices, width: int) -> Indices:
    """Residues in [-width / 2, width / 2)."""
    return (distances + width // 2) % width - width // 2


def _group(frame: Frame, diagonals: list[Diagonal], babies: Indices) -> Matrix:
    groups: list[dict[int, list[tuple[int, int]]]] = [{} for _ in range(frame.target.count)]
    for (into, out_of, distance), signed in zip(diagonals, babies.tolist(), strict=True):
        baby, giant = signed % frame.source.period, (distance - signed) % frame.source.period
        groups[into].setdefault(giant, []).append((out_of, baby))
    sums = tuple(
        tuple(Sum(giant, tuple(sorted(group[giant]))) for giant in sorted(group)) for group in groups
    )
    used = {baby for group in groups for terms in group.values() for _, baby in terms}
    return Matrix(frame, tuple(sorted(used)), sums)


def build_vectors(layer: LinearLayer, matrix: Matrix) -> Iterator[Floats]:
    """(P,) of each term, in the order of `matrix.sums`, already rotated against its giant step."""
    frame = matrix.frame
    vectors: dict[Diagonal, Floats] = {}
    for entries in iterate_entries(layer, frame.source, frame.target):
        into, out_of, distances, slots = frame.place(entries)
        keys = (into * frame.source.count + out_of) * frame.modulus + distances
        order = np.argsort(keys, kind="stable")
        unique, starts = np.unique(keys[order], return_index=True)
        for key, part in zip(unique.tolist(), np.split(order, starts[1:]), strict=True):
            rest, distance = divmod(key, frame.modulus)
            diagonal = (*divmod(rest, frame.source.count), distance)
            vector = vectors.setdefault(diagonal, np.zeros(frame.period))
            np.add.at(vector, slots[part], entries.values[part])
    for target, sums in enumerate(matrix.sums):
        for group in sums:
            for source, baby in group.terms:
                distance = (baby + group.giant) % frame.source.period
                yield np.roll(vectors[target, source, distance], group.giant)
