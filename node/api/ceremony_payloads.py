"""Payloads of key ceremonies as JSON: a ceremony, commitments, contributions, keys, ends."""

from typing import Literal

from pydantic import Field

from node.api.fields import BlobRefModel, Count, Hex32, HexBytes, Model, TimeMs


class CreateCeremonyPayload(Model):
    """A committee that is to make keys together; see `consensus.ceremonies.CreateCeremony`."""

    kind: Literal["create-ceremony"] = "create-ceremony"
    preset: str
    members: tuple[Hex32, ...] = Field(description="Accounts, ascending, of one organisation each")
    threshold: Count = Field(description="So many members open together")
    deadline: TimeMs


class CommitRoundPayload(Model):
    kind: Literal["commit-round"] = "commit-round"
    ceremony: Hex32
    round: Count
    digest: Hex32


class RevealRoundPayload(Model):
    kind: Literal["reveal-round"] = "reveal-round"
    ceremony: Hex32
    round: Count
    contribution: BlobRefModel
    salt: HexBytes


class ConfirmCeremonyPayload(Model):
    kind: Literal["confirm-ceremony"] = "confirm-ceremony"
    ceremony: Hex32
    public_key: BlobRefModel
    relin_keys: BlobRefModel


class EndCeremonyPayload(Model):
    kind: Literal["end-ceremony"] = "end-ceremony"
    ceremony: Hex32
