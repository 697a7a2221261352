"""A signed transaction around one payload."""

from dataclasses import dataclass

from consensus.task import Payload
from consensus.types import Address, Hash32, Signature


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """`nonce` counts the sender's Transfer, DraftTask, Contribute and PublishTask; it is 0 for the
    kinds that are idempotent by content (Available, openings, ExpireTask), which are thus valid on
    every fork."""

    chain_id: Hash32
    sender: Address
    nonce: int
    payload: Payload
    signature: Signature
