"""A signed transaction around one payload; its identifier and its signature."""

from dataclasses import dataclass, replace

from consensus.ceremonies import CreateCeremony
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain, verify
from consensus.federations import CreateFederation
from consensus.jobs import RegisterModel, RequestInference
from consensus.payload import Payload
from consensus.task import Contribute, DraftTask, PublishTask, Transfer
from consensus.types import Address, Hash32, Signature


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """`nonce` counts the sender's Transfer, DraftTask, Contribute, PublishTask, RegisterModel,
    RequestInference, CreateFederation and CreateCeremony; it is 0 for all other kinds, which are idempotent
    by content and thus valid on every fork."""

    chain_id: Hash32
    sender: Address
    nonce: int
    payload: Payload
    signature: Signature


MAX_TRANSACTION_BYTES = 1024 * 1024
"""Canonical length of the largest transaction."""


_EMPTY_SIGNATURE = b"\xc4\x00"
_SIGNATURE_BYTES = 2 + 64
"""A signature is the last field, so the unsigned encoding is the signed one with another end."""


def compute_transaction_id(transaction: SignedTransaction, encoded: bytes | None = None) -> Hash32:
    """Names the transaction's content; independent of the signature's bytes.

    `encoded`, where the caller has them at hand, are the transaction's canonical bytes.
    """
    data = encode(transaction) if encoded is None else encoded
    if transaction.signature:
        data = data[:-_SIGNATURE_BYTES] + _EMPTY_SIGNATURE
    return hash_domain("transaction", data)


def sign_transaction(key: SigningKey, chain_id: Hash32, nonce: int, payload: Payload) -> SignedTransaction:
    """A transaction of the key's account, valid on this chain only."""
    unsigned = SignedTransaction(chain_id, key.address, nonce, payload, Signature(b""))
    signature = key.sign("transaction", compute_transaction_id(unsigned))
    return replace(unsigned, signature=signature)


def verify_transaction(transaction: SignedTransaction) -> bool:
    """True exactly if the sender's key signed this content."""
    identifier = compute_transaction_id(transaction)
    return verify(transaction.sender, "transaction", identifier, transaction.signature)


def uses_nonce(payload: Payload) -> bool:
    """False for the kinds that are idempotent by content."""
    return isinstance(
        payload,
        Transfer
        | DraftTask
        | Contribute
        | PublishTask
        | RegisterModel
        | RequestInference
        | CreateFederation
        | CreateCeremony,
    )
