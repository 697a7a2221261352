"""Where the values of one image's feature maps lie: ciphertexts and slots.

A channel's map lies on a grid of `rows` x `pitch` slots, powers of two, with `dilation` grid steps between
neighbours: a stride or a pool leaves its results where its windows begin, so that nothing is moved. In the
gaps of a dilated map lie further channels, `mux` x `mux` of them at `unit` steps (multiplexed packing, Lee et
al., ICML 2022). Grids follow each other; what fills less than all slots is repeated through them with
`period`, so that a rotation finds the neighbour of every copy. A vector is a map of 1 x 1 on a grid of 1.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from he.errors import ParameterError
from he.network import Shape

Indices = NDArray[np.int64]


def round_up(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Layout:
    """The place of every value (C, H, W)."""

    shape: Shape
    slots: int
    """Of a ciphertext."""
    rows: int
    pitch: int
    dilation: int = 1
    mux: int = 1
    unit: int = 1
    least_period: int = 1
    """A layer whose input repeats itself less often can't make results that repeat more often."""

    @property
    def grid(self) -> int:
        """Slots of a grid."""
        return self.rows * self.pitch

    @property
    def grids(self) -> int:
        """How many hold all channels."""
        return -(-self.shape[0] // self.mux**2)

    @property
    def period(self) -> int:
        return min(self.slots, max(round_up(self.grids) * self.grid, self.least_period))

    @property
    def count(self) -> int:
        """Ciphertexts."""
        return -(-self.grids * self.grid // self.slots)

    @property
    def neighbours(self) -> tuple[int, int]:
        """Slots between neighbours in a column, and in a row."""
        return self.dilation * self.pitch, self.dilation

    def check(self, name: str) -> None:
        """Raises: ParameterError if a grid exceeds a ciphertext, or the map its grid."""
        if self.grid > self.slots:
            raise ParameterError(
                f"layer {name!r}: a map on a grid of {self.rows}x{self.pitch} exceeds {self.slots} slots"
            )
        for side, room in zip(self.shape[1:], (self.rows, self.pitch), strict=True):
            if (side - 1) * self.dilation + (self.mux - 1) * self.unit >= room:
                raise ParameterError(
                    f"layer {name!r}: a side of {side} at every {self.dilation} does not fit into {room}"
                    " slots: use less padding"
                )

    def locate(self, channel: int) -> tuple[int, int]:
        """Ciphertext and slot of a channel's first value."""
        grid, inner = divmod(channel, self.mux**2)
        row, column = divmod(inner, self.mux)
        ciphertext, grid = divmod(grid, max(1, self.slots // self.grid))
        return ciphertext, grid * self.grid + self.unit * (row * self.pitch + column)

    def get_map(self) -> Indices:
        """(H, W): slots of a map's values behind its first."""
        step_y, step_x = self.neighbours
        _, height, width = self.shape
        return np.arange(height)[:, None] * step_y + np.arange(width)[None, :] * step_x

    def get_places(self) -> tuple[Indices, Indices]:
        """Ciphertexts and slots of all values, each (C H W), in C order; not to be changed."""
        return _compute_places(self)

    def shrink(self, shape: Shape, factor: int) -> "Layout":
        """Of what a pool leaves."""
        return replace(self, shape=shape, dilation=self.dilation * factor, least_period=self.period)


@lru_cache(maxsize=64)
def _compute_places(layout: Layout) -> tuple[Indices, Indices]:
    firsts = np.array([layout.locate(channel) for channel in range(layout.shape[0])], dtype=np.int64)
    slots = firsts[:, 1:] + layout.get_map().ravel()[None, :]
    ciphertexts = np.broadcast_to(firsts[:, :1], slots.shape)
    return ciphertexts.ravel().copy(), slots.ravel()


def lay_out_image(shape: Shape, slots: int) -> Layout:
    """Maps as they are, in grids of powers of two."""
    return Layout(shape, slots, round_up(shape[1]), round_up(shape[2]))


def lay_out_vector(length: int, slots: int) -> Layout:
    """A vector, repeated as often as it fits."""
    return Layout((length, 1, 1), slots, 1, 1)


def is_same_place(a: Layout, b: Layout) -> bool:
    """Whether equal indices mean equal slots, so that ciphertexts can be added."""
    if a == b:
        return True
    if a.shape != b.shape or a.slots != b.slots:
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.get_places(), b.get_places(), strict=True))
