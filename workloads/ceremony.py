"""A committee's key ceremony, one member's work: jobs on one folder that give the same bytes at every call.

Five rounds, each with one contribution of every member, of exact length (`ceremony_blobs`):

- coins: 32 random bytes and an X25519 key, both of this attempt only; all coins together seed the common
  strings;
- shares: what public and relinearisation keys are added up from, first round;
- relin: the relinearisation keys' second round;
- secrets: a piece of the member's secret for each other place, sealed to it;
- test: the member's part of the known answer's opening, for each subset that holds it.

What is posted of them, and in which order, is the caller's: everybody must commit to a round's contribution
before seeing another's. A ceremony that fails is over; the next is another one, in another folder.

The rules are of `ceremony_rounds`, what is on disk of `ceremony_folder`. This module loads neither.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from he.errors import HeError
from he.formats import HEADER_BYTES, WORD_BYTES
from he.params import CkksParams, get_params
from workloads.base import WorkloadError
from workloads.sealed import NONCE_BYTES, PLAIN, TAG_BYTES, FolderKeys, SealedHeader, SealingKey

ROUNDS: Final = ("coins", "shares", "relin", "secrets", "test")
SKIPPED: Final = ("shares", "relin")
"""By a renewal, which has its keys; both as in `consensus.ceremonies`."""
CEREMONY_BYTES: Final = 32
COIN_BYTES: Final = 32
EXCHANGE_BYTES: Final = 32
"""Of an X25519 key, public or private."""
CONTRIBUTION_HEADER_BYTES: Final = 112
MAX_MEMBERS: Final = 64
SHARED_LEVELS: Final = 2
"""Both as in `he.multiparty`."""


class RefusedError(WorkloadError):
    """A contribution is refused, or the known answer wrong: nothing cures this attempt."""


@dataclass(frozen=True, slots=True)
class CeremonyTerms:
    """What all members agree on, and which of them this is. Raises WorkloadError if made of nonsense."""

    ceremony: bytes
    """32 bytes that name this attempt and no other."""
    preset: str
    members: int
    threshold: int
    place: int
    allow_insecure: bool = False
    """Admits test presets."""

    def __post_init__(self) -> None:
        if len(self.ceremony) != CEREMONY_BYTES:
            raise WorkloadError(f"a ceremony is named by {CEREMONY_BYTES} bytes, got {len(self.ceremony)}")
        _check_numbers(self.members, self.threshold, self.place)

    def get_params(self) -> CkksParams:
        """Raises WorkloadError if the preset is unknown or not admitted."""
        return _get_params(self.preset, self.allow_insecure)

    def get_bytes(self, round_name: str) -> int:
        """Of this member's contribution, and of any other place's but for the test round."""
        return self.get_bytes_of(self.place, round_name)

    def get_bytes_of(self, place: int, round_name: str) -> int:
        return get_contribution_bytes(
            self.preset,
            self.members,
            self.threshold,
            place,
            round_name,
            allow_insecure=self.allow_insecure,
        )


@dataclass(frozen=True, slots=True)
class Renewal:
    """Whose shares are shared anew: those of as many old members as open together; the others deal zero."""

    public_key: Path
    relin_keys: Path
    dealers: tuple[int, ...]
    """New places, in the order of the old ones."""
    old_places: tuple[int, ...]
    """Of the dealers, ascending."""
    folder: Path | None = field(default=None, repr=False)
    """Of this member's old share, if it is a dealer."""
    keys: FolderKeys = field(default=PLAIN, repr=False)
    """For an old share that is sealed."""


@dataclass(frozen=True, slots=True)
class RoundJob:
    """One member's next step, after the rounds whose contributions are here."""

    terms: CeremonyTerms
    folder: Path = field(repr=False)
    contributions: tuple[tuple[Path, ...], ...]
    """Of all finished rounds, by round, then place; the own one included; none of rounds that are skipped."""
    renewal: Renewal | None = None
    """None: the members make new keys."""


@dataclass(frozen=True, slots=True)
class FinishedCeremony:
    """The collective keys, encoded; every member has the same."""

    public_key: Path
    relin_keys: Path
    box_key: bytes
    """This member's X25519 key, for what others seal to it."""


def get_contribution_bytes(
    preset: str, members: int, threshold: int, place: int, round_name: str, *, allow_insecure: bool = False
) -> int:
    """Exact length of the contribution of `place` in a round. Raises: WorkloadError."""
    params = _get_params(preset, allow_insecure)
    _check_numbers(members, threshold, place)
    row = params.ring * WORD_BYTES
    polynomial = len(params.primes) * row
    if round_name == "coins":
        body = COIN_BYTES + EXCHANGE_BYTES
    elif round_name == "shares":
        body = HEADER_BYTES + polynomial + HEADER_BYTES + 2 * params.levels * polynomial
    elif round_name == "relin":
        body = HEADER_BYTES + params.levels * polynomial
    elif round_name == "secrets":
        body = (members - 1) * get_sealed_piece_bytes(params)
    elif round_name == "test":
        subsets = min(place, members - threshold) - max(0, place - threshold + 1) + 1
        body = subsets * get_opening_bytes()
    else:
        raise WorkloadError(f"no round is called {round_name!r}; the rounds are {', '.join(ROUNDS)}")
    return CONTRIBUTION_HEADER_BYTES + body


def get_sealed_piece_bytes(params: CkksParams) -> int:
    return NONCE_BYTES + HEADER_BYTES + SHARED_LEVELS * params.ring * WORD_BYTES + TAG_BYTES


def get_opening_bytes() -> int:
    """Of one subset: a number modulo each shared prime."""
    return HEADER_BYTES + SHARED_LEVELS * WORD_BYTES


def run_round(job: RoundJob, key: SealingKey | None = None) -> Path:
    """This member's contribution to the next round; the same bytes at every call.

    With a `key`, what is secret is sealed on disk. Raises: RefusedError naming round and place of a
    contribution; WorkloadError if this round was answered for other contributions, or the folder lacks or
    does not open what is secret; OSError.
    """
    from workloads.ceremony_rounds import make_contribution

    return make_contribution(job, key)


def run_finish(job: RoundJob, key: SealingKey | None = None) -> FinishedCeremony:
    """After the test round: the collective keys, and this member's share in the folder.

    The folder then holds `secret.key`, `noise.key`, `public.key` and `relin.keys`; what was secret of the
    ceremony alone is overwritten and gone. Raises: RefusedError naming round and place of a contribution, or
    the subsets whose answer is wrong; otherwise as `run_round`.
    """
    from workloads.ceremony_rounds import finish

    return finish(job, key)


def forget(folder: Path, *, failed: bool = False) -> None:
    """Of a finished ceremony, removes all but its keys; of any other, or if it `failed`, everything."""
    from workloads.ceremony_folder import forget_folder

    forget_folder(folder, failed=failed)


def find_seal(folder: Path) -> SealedHeader | None:
    """How an unfinished ceremony's secrets are sealed, for deriving their key again; None if they are not,
    or there are none yet. Raises: WorkloadError on a damaged file."""
    from workloads.ceremony_folder import read_seal

    return read_seal(folder)


def _get_params(preset: str, allow_insecure: bool) -> CkksParams:
    try:
        params = get_params(preset, allow_insecure=allow_insecure)
    except HeError as error:
        raise WorkloadError(f"preset: {error}") from error
    if params.levels < SHARED_LEVELS:
        raise WorkloadError(f"preset: {preset} has fewer than the {SHARED_LEVELS} primes that are shared")
    return params


def _check_numbers(members: int, threshold: int, place: int) -> None:
    if not 2 <= threshold <= members <= MAX_MEMBERS:
        raise WorkloadError(
            f"thresholds are 2 to the number of members, at most {MAX_MEMBERS}; got {threshold} of {members}"
        )
    if not 0 <= place < members:
        raise WorkloadError(f"places are 0 to {members - 1}, got {place}")
