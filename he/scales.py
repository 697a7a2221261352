"""Exact scales, as fractions."""

from fractions import Fraction


class ScaleProducts:
    """Products of exact scales, computed once for each pair of objects that a circuit uses."""

    _CAPACITY = 1024

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Fraction, Fraction, Fraction]] = {}

    def get(self, a: Fraction, b: Fraction) -> Fraction:
        # The entry keeps both factors alive, so that their ids stay theirs.
        entry = self._known.get((id(a), id(b)))
        if entry is None:
            if len(self._known) >= self._CAPACITY:
                self._known.clear()
            entry = (a, b, a * b)
            self._known[id(a), id(b)] = entry
        return entry[2]
