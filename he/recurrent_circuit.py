"""The recurrent cell on ciphertexts of batch packing: one ciphertext a value, slots are sequences.

One circuit for two kinds of operands. Shadows have a level and an exact scale and nothing else: running the
circuit on them is how it is planned and counted. Ciphertexts go through the same calls afterwards, so the
plan can't differ from what is evaluated.

A step takes `STEP_DEPTH` rescalings: one for the weighted sums, two for the gates' cubics, one for the cell,
two for its cubic, one for the product with the output gate. The step's decision takes one more. A cubic
c0 + c1 z + c3 z^3 is computed as v (v^2 + c1 / k) + c0 of v = k z with k^3 = c3, where k is folded into the
weights that z is a sum by; the cell is kept multiplied by the k of its own cubic in the same way.

Canonical: products and sums modulo the primes are exact, complete sums alone are relinearised and then
rescaled, constants are exact integers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from he.counts import Counts, Operation
from he.errors import DepthError
from he.params import CkksParams
from he.plan import Form
from he.recurrent import OddCubic, RecurrentCell

Floats = NDArray[np.float64]

STEP_DEPTH: Final = 7
DECISION_DEPTH: Final = 1


def compute_scale(params: CkksParams) -> Fraction:
    """Of fresh features and of weights: 2 to the size of the primes that are dropped."""
    return Fraction(1 << params.prime_bits[-2])


class Operand(Protocol):
    """What the circuit reads of a ciphertext or of its shadow."""

    level: int
    scale: Fraction
    components: int


T = TypeVar("T", bound=Operand)


class Operations(Protocol[T]):
    """Arithmetic as in `he.backend.Engine`, constants by their exact integers."""

    def copy(self, operand: T) -> T: ...
    def add_inplace(self, total: T, other: T) -> None: ...
    def add_constant_inplace(self, total: T, value: int) -> None: ...
    def multiply_constant(self, operand: T, value: int, scale: Fraction) -> T: ...
    def multiply(self, a: T, b: T) -> T: ...
    def square(self, operand: T) -> T: ...
    def relinearize_inplace(self, operand: T) -> None: ...
    def rescale_inplace(self, operand: T) -> None: ...
    def drop_inplace(self, operand: T, level: int) -> None: ...


@dataclass(slots=True)
class Shadow:
    """A ciphertext's level, scale and components."""

    level: int
    scale: Fraction
    components: int = 2


class ShadowOperations:
    """Follows levels and scales, and counts."""

    def __init__(self, params: CkksParams) -> None:
        self.params = params
        self.counts: Counts = Counter()
        self._products: dict[tuple[int, int], tuple[Fraction, Fraction, Fraction]] = {}
        self._inverses = [Fraction(1, prime) for prime in params.primes]

    def copy(self, operand: Shadow) -> Shadow:
        return Shadow(operand.level, operand.scale, operand.components)

    def add_inplace(self, total: Shadow, other: Shadow) -> None:
        total.components = max(total.components, other.components)
        self._count(Operation.ADD_2 if total.components == 2 else Operation.ADD_3, total.level)

    def add_constant_inplace(self, total: Shadow, value: int) -> None:
        self._count(Operation.ADD_CONSTANT, total.level)

    def multiply_constant(self, operand: Shadow, value: int, scale: Fraction) -> Shadow:
        self._count(Operation.CONSTANT_2, operand.level)
        return Shadow(operand.level, self._multiply(operand.scale, scale), operand.components)

    def multiply(self, a: Shadow, b: Shadow) -> Shadow:
        self._count(Operation.MULTIPLY, a.level)
        return Shadow(a.level, self._multiply(a.scale, b.scale), 3)

    def square(self, operand: Shadow) -> Shadow:
        self._count(Operation.SQUARE, operand.level)
        return Shadow(operand.level, self._multiply(operand.scale, operand.scale), 3)

    def relinearize_inplace(self, operand: Shadow) -> None:
        self._count(Operation.RELINEARIZE, operand.level)
        operand.components = 2

    def rescale_inplace(self, operand: Shadow) -> None:
        if operand.level <= 1:
            raise DepthError(f"{self.params.name}: no level is left to rescale")
        self._count(Operation.RESCALE_2, operand.level)
        operand.level -= 1
        operand.scale = self._multiply(operand.scale, self._inverses[operand.level])

    def drop_inplace(self, operand: Shadow, level: int) -> None:
        if operand.level < level:
            raise DepthError(f"{self.params.name}: a value of level {operand.level} can't go up to {level}")
        operand.level = level

    def _multiply(self, a: Fraction, b: Fraction) -> Fraction:
        """Once for each pair of objects, which the entry keeps alive so that their ids stay theirs."""
        entry = self._products.get((id(a), id(b)))
        if entry is None:
            entry = self._products[id(a), id(b)] = (a, b, a * b)
        return entry[2]

    def _count(self, operation: Operation, level: int) -> None:
        self.counts[operation, level] += 1


# --- weights ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cubic:
    """v (v^2 + linear) + constant."""

    linear: float
    constant: float


def compute_factor(curve: OddCubic, times: float = 1.0) -> float:
    """k: in v = k z, `times` the curve has the coefficient 1 at its cube."""
    return float(np.cbrt(times * curve.c3))


def normalise(curve: OddCubic, times: float = 1.0) -> Cubic:
    """`times` the curve, as the polynomial of v = k z."""
    return Cubic(times * curve.c1 / compute_factor(curve, times), times * curve.c0)


@dataclass(frozen=True, slots=True)
class Curves:
    """The cubics as the circuit computes them; the cell is kept multiplied by the factor of `squash`."""

    gate: Cubic
    candidate: Cubic
    squash: Cubic


def build_curves(cell: RecurrentCell) -> Curves:
    return Curves(
        normalise(cell.gate),
        normalise(cell.candidate, compute_factor(cell.squash)),
        normalise(cell.squash),
    )


def fold_weights(cell: RecurrentCell) -> Floats:
    """All weights in the order of `Places`, the factors of the gates' cubics in their rows."""
    gate = compute_factor(cell.gate)
    candidate = compute_factor(cell.candidate, compute_factor(cell.squash))
    factors = np.repeat([gate, gate, candidate, gate], cell.hidden)
    rows = factors[:, None] * np.concatenate([cell.weights, cell.recurrent, cell.bias[:, None]], axis=1)
    return np.concatenate([rows.ravel(), cell.spatial, cell.temporal, [cell.offset]])


@dataclass(frozen=True, slots=True)
class Places:
    """Where weights are: gate rows of F features, H hidden values and a bias; then the weighted unit."""

    features: int
    hidden: int

    @property
    def width(self) -> int:
        return self.features + self.hidden + 1

    @property
    def total(self) -> int:
        return 4 * self.hidden * self.width + self.width

    def get_row(self, row: int) -> tuple[range, range, int]:
        """Of features, of hidden values, and the bias; row 4 H is the weighted unit."""
        start = row * self.width
        middle, end = start + self.features, start + self.features + self.hidden
        return range(start, middle), range(middle, end), end


class Weights(Protocol[T]):
    """Weights that operands can be multiplied by."""

    def weigh(self, operand: T, place: int) -> T:
        """operand * weight, at the operand's level."""
        ...

    def add_bias_inplace(self, total: T, place: int, scale: Fraction) -> None:
        """Adds the weight; `scale` is that of the total divided by that of weights."""
        ...


class ClearWeights(Generic[T]):
    """Exact integers at `compute_scale`."""

    def __init__(self, operations: Operations[T], scale: Fraction, integers: NDArray[np.int64]) -> None:
        self._operations = operations
        self._scale = scale
        self._integers = [int(value) for value in integers]

    def weigh(self, operand: T, place: int) -> T:
        return self._operations.multiply_constant(operand, self._integers[place], self._scale)

    def add_bias_inplace(self, total: T, place: int, scale: Fraction) -> None:
        self._operations.add_constant_inplace(total, round(self._integers[place] * scale))


class EncryptedWeights(Generic[T]):
    """Ciphertexts at `compute_scale`, each at the highest level that it is used at."""

    def __init__(self, operations: Operations[T], get: Callable[[int, int], T]) -> None:
        """`get` gives the weight of a place, to be used at a level, as a ciphertext of its own."""
        self._operations = operations
        self._get = get

    def weigh(self, operand: T, place: int) -> T:
        weight = self._get(place, operand.level)
        self._operations.drop_inplace(weight, operand.level)
        return self._operations.multiply(operand, weight)

    def add_bias_inplace(self, total: T, place: int, scale: Fraction) -> None:
        weight = self._get(place, total.level)
        self._operations.drop_inplace(weight, total.level)
        self._operations.add_inplace(total, self._operations.multiply_constant(weight, round(scale), scale))


# --- the circuit --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried(Generic[T]):
    """State between steps; `cell` is c times the factor of its cubic."""

    hidden: list[T]
    cell: list[T]


class StepCircuit(Generic[T]):
    """Steps of one cell."""

    def __init__(
        self,
        operations: Operations[T],
        params: CkksParams,
        places: Places,
        curves: Curves,
        weights: Weights[T],
    ) -> None:
        self.operations = operations
        self.params = params
        self.places = places
        self.curves = curves
        self.weights = weights

    def run(self, x: Sequence[T], state: Carried[T] | None) -> tuple[T, Carried[T]]:
        """The decision and the next state. Features and hidden values have one level and scale; a cell of a
        higher level or another scale is brought to the gates' first."""
        hidden, curves = self.places.hidden, self.curves
        new_hidden, new_cell = [], []
        for j in range(hidden):
            total = self.multiply(
                self.compute_gate(x, state, j, curves.gate),
                self.compute_gate(x, state, 2 * hidden + j, curves.candidate),
            )
            if state is not None:
                forget = self.compute_gate(x, state, hidden + j, curves.gate)
                cell = self.align(state.cell[j], Form(forget.level, forget.scale))
                self.operations.add_inplace(total, self.multiply(forget, cell))
            self.finish(total)
            new_cell.append(total)
            output = self.compute_gate(x, state, 3 * hidden + j, curves.gate)
            result = self.multiply(output, self.compute_cubic(total, curves.squash))
            self.finish(result)
            new_hidden.append(result)
        return self.decide(x, new_hidden), Carried(new_hidden, new_cell)

    def compute_gate(self, x: Sequence[T], state: Carried[T] | None, row: int, cubic: Cubic) -> T:
        total = self.sum_row(row, x, () if state is None else state.hidden)
        return self.compute_cubic(total, cubic)

    def decide(self, x: Sequence[T], hidden: Sequence[T]) -> T:
        """y of the weighted unit."""
        form = Form(hidden[0].level, hidden[0].scale)
        return self.sum_row(4 * self.places.hidden, [self.align(value, form) for value in x], hidden)

    def sum_row(self, row: int, x: Sequence[T], hidden: Sequence[T]) -> T:
        """One weighted sum with its bias, relinearised where weights are encrypted, and rescaled."""
        of_features, of_hidden, bias = self.places.get_row(row)
        pairs = [*zip(of_features, x, strict=True)]
        if hidden:
            pairs += zip(of_hidden, hidden, strict=True)
        terms = (self.weights.weigh(value, place) for place, value in pairs)
        total = next(terms)
        for term in terms:
            self.operations.add_inplace(total, term)
        self.weights.add_bias_inplace(total, bias, x[0].scale)
        self.finish(total)
        return total

    def compute_cubic(self, v: T, cubic: Cubic) -> T:
        """v (v^2 + linear) + constant; leaves v as it is."""
        square = self.operations.square(v)
        self.finish(square)
        self.add(square, cubic.linear)
        result = self.multiply(v, square)
        self.finish(result)
        self.add(result, cubic.constant)
        return result

    def multiply(self, a: T, b: T) -> T:
        """At the lower of both levels."""
        level = min(a.level, b.level)
        factors = []
        for factor in (a, b):
            if factor.level > level:
                factor = self.operations.copy(factor)
                self.operations.drop_inplace(factor, level)
            factors.append(factor)
        return self.operations.multiply(factors[0], factors[1])

    def add(self, total: T, value: float) -> None:
        self.operations.add_constant_inplace(total, round(Fraction(value) * total.scale))

    def align(self, value: T, form: Form) -> T:
        """The same message at another level and scale, by a product with an exact 1 and a rescaling.

        Raises: DepthError if the value is not above that level.
        """
        if value.level == form.level and value.scale == form.scale:
            return value
        if value.level <= form.level:
            raise DepthError(f"a value of level {value.level} can't be aligned at {form.level}")
        lifted = self.operations.copy(value)
        self.operations.drop_inplace(lifted, form.level + 1)
        scale = form.scale * self.params.primes[form.level] / value.scale
        result = self.operations.multiply_constant(lifted, round(scale), scale)
        self.operations.rescale_inplace(result)
        return result

    def finish(self, total: T) -> None:
        """Of a complete sum: the two operations that round."""
        if total.components == 3:
            self.operations.relinearize_inplace(total)
        self.operations.rescale_inplace(total)
