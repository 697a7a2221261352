"""The port through which consensus asks whether a loss ciphertext recomputes (W4)."""

from dataclasses import dataclass
from typing import Protocol

from consensus.types import Hash32


@dataclass(frozen=True, slots=True)
class LossCheck:
    """The question: what is the hash of the loss ciphertexts of `task` at these weights?"""

    task: Hash32
    step: int
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkVerdict:
    """The answer, computed bit for bit from public weights and encrypted validation data."""

    check: LossCheck
    ciphertext: Hash32


class WorkVerifier(Protocol):
    """Answers from finished recomputations; never computes, never blocks."""

    def get_verdict(self, check: LossCheck) -> WorkVerdict | None:
        """The finished verdict, or None: the caller then holds the block (`NeedsWork`)."""
        ...


class NoProofVerifier:
    """Believes a given hash: where finality vouches for it, and in tests of the other rules."""

    def __init__(self, ciphertext: Hash32) -> None:
        self._ciphertext = ciphertext

    def get_verdict(self, check: LossCheck) -> WorkVerdict | None:
        return WorkVerdict(check, self._ciphertext)
