"""A sequence network's recurrent part in clear: an LSTM cell with polynomial gates and its weighted unit.

One step, for features x and state (h, c), each value a number a sequence:

    [i, f, g, o] = [S, S, T, S](W x + U h + b),  c' = f c + i g,  h' = o R(c'),
    y = a . x + d . h' + e

S, T and R are cubic polynomials without a square: S for the logistic function, T and R for the hyperbolic
tangent, each fitted on an interval of its own. y is the weighted unit: how much the spatial features x and
the temporal features h' of a frame weigh in its decision is learnt (HE-CLSTM, ACM TOIT 2021); at inference
both weights are folded into a and d.

Numpy alone; `he.recurrent_circuit` evaluates the same on ciphertexts.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError

Floats = NDArray[np.float64]

GATES: Final = ("input", "forget", "candidate", "output")
"""Order of the blocks of rows in `weights`, `recurrent` and `bias`."""

MAX_FEATURES: Final = 64
MAX_HIDDEN: Final = 64

_MAGIC: Final = b"BMIFCELL"
_HEAD: Final = struct.Struct("<8sHH")


@dataclass(frozen=True, slots=True)
class OddCubic:
    """c0 + c1 x + c3 x^3 in place of a function on [-bound, bound]."""

    c0: float
    c1: float
    c3: float
    bound: float
    error: float
    """Largest distance from the function within the interval."""

    def evaluate(self, x: Floats) -> Floats:
        """Of any shape."""
        result: Floats = self.c0 + x * (self.c1 + self.c3 * x * x)
        return result


@dataclass(frozen=True, slots=True)
class State:
    """(H, B) each: one row a value, one column a sequence."""

    hidden: Floats
    cell: Floats


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentCell:
    """Weights of the cell and its weighted unit."""

    weights: Floats
    """W (4 H, F), rows by `GATES`."""
    recurrent: Floats
    """U (4 H, H)."""
    bias: Floats
    """b (4 H,)."""
    spatial: Floats
    """a (F,)."""
    temporal: Floats
    """d (H,)."""
    offset: float
    """e."""
    gate: OddCubic
    """S."""
    candidate: OddCubic
    """T."""
    squash: OddCubic
    """R."""
    feature_bound: float
    """Largest |x| seen in training, with a margin: what the scales leave room for."""

    def __post_init__(self) -> None:
        features, hidden = self.features, self.hidden
        if not (1 <= features <= MAX_FEATURES and 1 <= hidden <= MAX_HIDDEN):
            raise ParameterError(
                f"cell: expected 1 to {MAX_FEATURES} features and 1 to {MAX_HIDDEN} hidden values,"
                f" got {features} and {hidden}"
            )
        for name, array, shape in (
            ("weights", self.weights, (4 * hidden, features)),
            ("recurrent", self.recurrent, (4 * hidden, hidden)),
            ("bias", self.bias, (4 * hidden,)),
            ("spatial", self.spatial, (features,)),
            ("temporal", self.temporal, (hidden,)),
        ):
            if array.shape != shape or not bool(np.isfinite(array).all()):
                raise ParameterError(
                    f"cell.{name}: expected finite values of shape {shape}, got {array.shape}"
                )
        for name, curve in (("gate", self.gate), ("candidate", self.candidate), ("squash", self.squash)):
            if not np.isfinite([curve.c0, curve.c1, curve.c3, curve.bound, curve.error]).all():
                raise ParameterError(f"cell.{name}: coefficients must be finite")
            if curve.c3 == 0.0 or curve.bound <= 0.0:
                raise ParameterError(f"cell.{name}: needs a cubic coefficient and a positive interval")
        if not (np.isfinite(self.offset) and np.isfinite(self.feature_bound) and self.feature_bound > 0.0):
            raise ParameterError("cell: offset must be finite and feature_bound positive")

    @property
    def features(self) -> int:
        return int(self.spatial.shape[0])

    @property
    def hidden(self) -> int:
        return int(self.temporal.shape[0])

    def get_curve(self, row: int) -> OddCubic:
        """The polynomial of one row of the gates."""
        return self.candidate if row // self.hidden == 2 else self.gate

    # --- bytes --------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Magic, F and H as uint16, then every number as a little-endian double."""
        numbers = [
            *(array.ravel() for array in (self.weights, self.recurrent, self.bias)),
            *(self.spatial, self.temporal, np.array([self.offset, self.feature_bound])),
            *(
                np.array([curve.c0, curve.c1, curve.c3, curve.bound, curve.error])
                for curve in (self.gate, self.candidate, self.squash)
            ),
        ]
        head = _HEAD.pack(_MAGIC, self.features, self.hidden)
        # Adding zero turns -0.0 into 0.0: one value has one encoding.
        return head + (np.concatenate(numbers) + 0.0).astype("<f8").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """What `encode` gave, and nothing else.

        Raises: ParameterError.
        """
        if len(data) < _HEAD.size:
            raise ParameterError(f"cell: {len(data)} bytes are too few")
        magic, features, hidden = _HEAD.unpack_from(data)
        if magic != _MAGIC or not (1 <= features <= MAX_FEATURES and 1 <= hidden <= MAX_HIDDEN):
            raise ParameterError("cell: not the encoding of a recurrent cell")
        sizes = (4 * hidden * features, 4 * hidden * hidden, 4 * hidden, features, hidden, 2, 5, 5, 5)
        expected = _HEAD.size + 8 * sum(sizes)
        if len(data) != expected:
            raise ParameterError(f"cell: expected {expected} bytes, got {len(data)}")
        numbers = np.frombuffer(data, dtype="<f8", offset=_HEAD.size).astype(np.float64)
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        cell = cls(
            weights=parts[0].reshape(4 * hidden, features),
            recurrent=parts[1].reshape(4 * hidden, hidden),
            bias=parts[2],
            spatial=parts[3],
            temporal=parts[4],
            offset=float(parts[5][0]),
            gate=OddCubic(*map(float, parts[6])),
            candidate=OddCubic(*map(float, parts[7])),
            squash=OddCubic(*map(float, parts[8])),
            feature_bound=float(parts[5][1]),
        )
        if cell.encode() != data:
            raise ParameterError("cell: not the canonical encoding")
        return cell


def evaluate_step(cell: RecurrentCell, x: Floats, state: State | None) -> tuple[Floats, State]:
    """Decisions y (B,) and the next state in clear, from features x (F, B); no state means zeros."""
    z = cell.weights @ x + cell.bias[:, None]
    if state is not None:
        z = z + cell.recurrent @ state.hidden
    i, f, g, o = np.split(z, 4)
    c = cell.gate.evaluate(i) * cell.candidate.evaluate(g)
    if state is not None:
        c = c + cell.gate.evaluate(f) * state.cell
    h = cell.gate.evaluate(o) * cell.squash.evaluate(c)
    return cell.spatial @ x + cell.temporal @ h + cell.offset, State(h, c)


def evaluate_sequence(cell: RecurrentCell, x: Floats) -> Floats:
    """Decisions (T, B) in clear, from features (T, F, B)."""
    state: State | None = None
    decisions = []
    for step in x:
        y, state = evaluate_step(cell, step, state)
        decisions.append(y)
    return np.stack(decisions)
