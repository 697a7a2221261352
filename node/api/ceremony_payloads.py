"""Payloads of key ceremonies as JSON: a ceremony, commitments, reveals, confirmations."""

from typing import Literal

from pydantic import Field

from consensus.ceremonies import MAX_MEMBERS
from node.api.fields import BlobRefModel, Count, Hex32, Model, TimeMs


class CreateCeremonyPayload(Model):
    """Keys that a committee makes together; see `consensus.ceremonies.CreateCeremony`."""

    kind: Literal["create-ceremony"] = "create-ceremony"
    title: str
    preset: str = Field(description="Name of the keys' CKKS preset")
    members: tuple[Hex32, ...] = Field(max_length=MAX_MEMBERS, description="Ascending addresses")
    threshold: Count = Field(description="How many of them open together")
    deadline: TimeMs
    renews: Hex32 = Field(description="The ceremony whose keys they share anew; zeros: they make new keys")


class CommitRoundPayload(Model):
    kind: Literal["commit-round"] = "commit-round"
    ceremony: Hex32
    round: Count
    commitment: Hex32


class RevealRoundPayload(Model):
    kind: Literal["reveal-round"] = "reveal-round"
    ceremony: Hex32
    round: Count
    contribution: BlobRefModel
    salt: Hex32


class ConfirmCeremonyPayload(Model):
    """A member's keys, once all answers were right."""

    kind: Literal["confirm-ceremony"] = "confirm-ceremony"
    ceremony: Hex32
    public_key: BlobRefModel
    relin_keys: BlobRefModel
    box_key: Hex32 = Field(description="The member's X25519 key, for what is sealed to it")


class EndCeremonyPayload(Model):
    kind: Literal["end-ceremony"] = "end-ceremony"
    ceremony: Hex32
