"""Finality votes: what a validator signs, and which two votes together convict it (DESIGN 5, Casper FFG)."""

from dataclasses import dataclass, replace

from consensus.codec import encode
from consensus.crypto import SigningKey, verify
from consensus.types import Address, Hash32, Height, Signature


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block as votes name it; every block is one."""

    height: Height
    hash: Hash32


@dataclass(frozen=True, slots=True)
class Vote:
    """A link: from the highest justified checkpoint in the target's post-state to the target."""

    validator: Address
    source: Checkpoint
    target: Checkpoint
    signature: Signature


def sign_vote(key: SigningKey, chain_id: Hash32, source: Checkpoint, target: Checkpoint) -> Vote:
    unsigned = Vote(key.address, source, target, Signature(b""))
    return replace(unsigned, signature=key.sign("vote", chain_id + encode(unsigned)))


def verify_vote(chain_id: Hash32, vote: Vote) -> bool:
    """True exactly if the validator signed this link for this chain."""
    unsigned = replace(vote, signature=Signature(b""))
    return verify(vote.validator, "vote", chain_id + encode(unsigned), vote.signature)


def is_double(a: Vote, b: Vote) -> bool:
    """Two different links to targets of one height."""
    return a.target.height == b.target.height and (a.source, a.target) != (b.source, b.target)


def is_surrounding(outer: Vote, inner: Vote) -> bool:
    """`outer` begins strictly below and ends strictly above `inner`."""
    return outer.source.height < inner.source.height and inner.target.height < outer.target.height


def is_slashable(a: Vote, b: Vote) -> bool:
    """True if no honest validator signs both; whether they are signed is for `verify_vote` to say."""
    if a.validator != b.validator:
        return False
    return is_double(a, b) or is_surrounding(a, b) or is_surrounding(b, a)


@dataclass(frozen=True, slots=True)
class SignState:
    """How far a validator has signed: it is stored before a vote leaves and never falls."""

    source: Height
    """Greatest height of a source."""
    target: Height
    """Greatest height of a target."""

    def after(self, vote: Vote) -> "SignState":
        return SignState(max(self.source, vote.source.height), max(self.target, vote.target.height))


NOTHING_SIGNED = SignState(Height(0), Height(0))
