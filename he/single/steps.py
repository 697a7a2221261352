"""What is done with one image's ciphertexts, step by step; everything is known from shapes."""

from dataclasses import dataclass
from fractions import Fraction

from he.plan import Form
from he.single.matrices import Matrix
from he.single.slots import Layout


@dataclass(frozen=True, slots=True)
class LinearStep:
    """Convolution, batch norm, dense layer or global mean: diagonals, then the bias."""

    name: str
    source: str
    matrix: Matrix
    read: Form
    """What the source is brought to by dropping levels."""
    weight: Form
    """Of every vector."""
    product: Form
    """Of sums, before they are rescaled."""
    result: Form
    rescaled: bool
    """False where this is the network's last layer and sums are the result."""

    @property
    def layout(self) -> Layout:
        return self.matrix.frame.target


@dataclass(frozen=True, slots=True)
class SquareStep:
    """sign (x + shift)^2 + offset: one product a ciphertext."""

    name: str
    source: str
    layout: Layout
    read: Form
    result: Form
    shift: Fraction
    sign: int
    offset: Fraction


@dataclass(frozen=True, slots=True)
class PolynomialStep:
    """Any polynomial, by halves: p = high x^m + low, m the largest power of two up to its degree."""

    name: str
    source: str
    layout: Layout
    read: Form
    result: Form
    coefficients: tuple[Fraction, ...]
    """Lowest first, the last not zero."""


@dataclass(frozen=True, slots=True)
class PoolStep:
    """Means by adding up neighbours: the factor is in the exact scale, and no level is used."""

    name: str
    source: str
    layout: Layout
    read: Form
    result: Form
    size: int
    neighbours: tuple[int, int]
    """Slots between neighbours in a column, and in a row."""


@dataclass(frozen=True, slots=True)
class AddStep:
    """Of two branches; the one at another scale is multiplied by 1, written at the scale that evens them."""

    name: str
    source: str
    other: str
    layout: Layout
    reads: tuple[Form, Form]
    result: Form
    evened: int | None
    """Which of the two; None if scales are equal."""
    weight: Fraction
    """The scale at which that 1 is written."""


Step = LinearStep | SquareStep | PolynomialStep | PoolStep | AddStep


def list_pool_rotations(step: PoolStep) -> tuple[tuple[int, bool], ...]:
    """(step, doubled) for both directions: a power of two by doubling sums, others by adding one at a time.

    'doubled': the sum itself is rotated and added, else the sum is rotated and the source is added.
    """
    found: list[tuple[int, bool]] = []
    for distance in reversed(step.neighbours):
        if step.size & (step.size - 1) == 0:
            found += [(distance << bit, True) for bit in range(step.size.bit_length() - 1)]
        else:
            found += [(distance, False)] * (step.size - 1)
    return tuple(found)


def get_depth(degree: int) -> int:
    """Levels of a polynomial of this degree by halves."""
    return max(1, degree.bit_length())
