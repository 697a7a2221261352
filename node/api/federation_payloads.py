"""Payloads of federated rounds as JSON: a federation, updates, attestations, sums, openings, judgements."""

from typing import Literal

from pydantic import Field

from consensus.types import MAX_LADDER
from node.api.fields import BlobRefModel, Count, Hex32, Model, TimeMs
from node.api.task_payloads import MilestoneModel


class ParticipantModel(Model):
    """Who trains, and how much its update counts."""

    address: Hex32
    weight: Count


class CreateFederationPayload(Model):
    """A network that its participants train together; see `consensus.federations.CreateFederation`."""

    kind: Literal["create-federation"] = "create-federation"
    title: str
    statement: str = Field(description="What is trained on what; nobody checks it")
    network: BlobRefModel
    model: BlobRefModel = Field(description="Initial weights")
    parameters: Count
    keys: BlobRefModel = Field(description="Public key that updates are encrypted under")
    update_bytes: Count
    participants: tuple[ParticipantModel, ...]
    min_participants: Count
    rounds: Count
    max_openings: Count
    train_ms: Count
    open_ms: Count
    judge_ms: Count
    clip: Count = Field(description="L2 bound of an update, integer units")
    noise_std: Count = Field(description="Of the opened sum, integer units")
    slack: Count = Field(description="How much larger the loss may become, opened units")
    ladder: tuple[MilestoneModel, ...] = Field(max_length=MAX_LADDER)
    deadline: TimeMs


class _RoundPayload(Model):
    federation: Hex32
    round: Count


class SubmitUpdatePayload(_RoundPayload):
    kind: Literal["submit-update"] = "submit-update"
    update: BlobRefModel


class AttestUpdatesPayload(_RoundPayload):
    kind: Literal["attest-updates"] = "attest-updates"
    updates: tuple[Hex32, ...] = Field(description="Roots, ascending")


class CloseRoundPayload(_RoundPayload):
    kind: Literal["close-round"] = "close-round"


class ConfirmSumPayload(_RoundPayload):
    kind: Literal["confirm-sum"] = "confirm-sum"
    total: Hex32 = Field(description="Root of the sum's blob")


class OpenSumPayload(_RoundPayload):
    kind: Literal["open-sum"] = "open-sum"
    total: Hex32
    opened: BlobRefModel
    model: BlobRefModel


class JudgeRoundPayload(_RoundPayload):
    kind: Literal["judge-round"] = "judge-round"
    model: Hex32 = Field(description="Root of the model that is judged")
    before: Count
    after: Count


class SettleRoundPayload(_RoundPayload):
    kind: Literal["settle-round"] = "settle-round"


class EndFederationPayload(Model):
    kind: Literal["end-federation"] = "end-federation"
    federation: Hex32
