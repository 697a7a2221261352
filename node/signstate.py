"""How far a validator has signed, on disk before any vote leaves; it never falls."""

from dataclasses import dataclass

from consensus.codec import CodecError, decode, encode
from consensus.types import Address
from consensus.vote import NOTHING_SIGNED, SignState, Vote
from node.ledger.chainstore import SIGN_STATE_PREFIX, SIGN_STATE_UNKNOWN, Ledger, LedgerDamaged


@dataclass(frozen=True, slots=True)
class SignRecord:
    """What the ledger keeps for a key."""

    signed: SignState
    last: Vote | None
    """The vote signed last: it may not have reached anybody."""


class SignStateRegression(Exception):
    """A vote was to be recorded that the sign-state does not allow; nothing was written."""


class SignStateStore:
    """One key's sign-state in the ledger's records."""

    def __init__(self, ledger: Ledger, validator: Address) -> None:
        self._ledger = ledger
        self._key = SIGN_STATE_PREFIX + validator
        self._record = self._load()

    def _load(self) -> SignRecord | None:
        data = self._ledger.get_record(self._key)
        if data is None:
            return None
        try:
            return decode(SignRecord, data)
        except CodecError as error:
            # Guessing what was signed is what this record exists to prevent.
            raise LedgerDamaged(f"the sign-state is damaged: {error}") from error

    @property
    def is_unknown(self) -> bool:
        """True while a rebuilt ledger says that what was recorded may be lost."""
        return self._ledger.get_record(SIGN_STATE_UNKNOWN) is not None

    @property
    def is_missing(self) -> bool:
        return self._record is None

    @property
    def signed(self) -> SignState:
        return NOTHING_SIGNED if self._record is None else self._record.signed

    @property
    def last(self) -> Vote | None:
        return None if self._record is None else self._record.last

    def record(self, vote: Vote) -> None:
        """Store, synced, that this vote is signed; only then may it leave.

        Raises: SignStateRegression unless its target is above and its source not below all before it.
        """
        signed = self.signed
        if vote.target.height <= signed.target or vote.source.height < signed.source:
            raise SignStateRegression(
                f"Expected a target above {signed.target} and a source from {signed.source} on. "
                f"Got {vote.target.height} and {vote.source.height}."
            )
        self._put(SignRecord(signed.after(vote), vote))

    def settle(self, known: SignState) -> None:
        """It is safe to go on above what is recorded and above `known`: note so, for the next start."""
        signed = self.signed
        signed = SignState(max(signed.source, known.source), max(signed.target, known.target))
        if self._record is None or signed != self._record.signed:
            self._put(SignRecord(signed, self.last))
        if self.is_unknown:
            self._ledger.delete_record(SIGN_STATE_UNKNOWN)

    def _put(self, record: SignRecord) -> None:
        self._ledger.put_record(self._key, encode(record))
        self._record = record
