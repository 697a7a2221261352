"""Records whose content the ledger's check knows: those that must not be guessed."""

from consensus.codec import CodecError, decode
from node.ledger.chainstore import SIGN_STATE_UNKNOWN
from node.signstate import SignRecord


def is_sign_state_readable(key: bytes, value: bytes) -> bool:
    """Whether a record under `SIGN_STATE_PREFIX` says what it is there for."""
    if key == SIGN_STATE_UNKNOWN:
        return True
    try:
        decode(SignRecord, value)
    except CodecError:
        return False
    return True
