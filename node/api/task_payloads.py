"""Payloads of tasks as JSON, from a transfer and a draft to an expiry: one pydantic model a kind."""

from typing import Literal

from pydantic import Field

from consensus.types import MAX_LADDER
from node.api.fields import (
    AmountInt,
    BlobRefModel,
    ClaimModel,
    CosignatureModel,
    Count,
    Hex32,
    HexBytes,
    Model,
    SealedClaimModel,
    SignedInt,
    TimeMs,
)


class DraftModel(Model):
    """A custody's offer; see `consensus.task.Draft` for the meaning of each field."""

    kind: str
    title: str
    salt: HexBytes
    preset: str
    model: HexBytes
    parameters: Count
    weight_box: Count
    public_key: BlobRefModel
    relin_keys: BlobRefModel
    clipping: str
    gradient_scale_bits: Count
    gradient_clip: Count
    gradient_noise: Count
    loss_scale_bits: Count
    loss_clip: Count
    loss_noise: Count
    max_gradient_openings: Count
    max_loss_openings: Count
    privacy: str
    ceremony: Hex32 = Field(
        default="0" * 64, description="Id of the committee's ceremony; zeros: a single custodian"
    )


class BatchModel(Model):
    blob: BlobRefModel
    patches: Count


class PatientRangeModel(Model):
    patient: Count
    validation: bool
    batch: Count
    start: Count
    stop: Count


class MilestoneModel(Model):
    target: SignedInt = Field(description="Validation loss, opened units")
    reward: AmountInt


class OptimizerModel(Model):
    shift: Count
    learning_rates: tuple[Count, ...]


class CreditModel(Model):
    miner: Hex32
    batches: Count


class TransferPayload(Model):
    kind: Literal["transfer"] = "transfer"
    to: Hex32
    amount: AmountInt


class DraftPayload(Model):
    kind: Literal["draft"] = "draft"
    draft: DraftModel


class ContributePayload(Model):
    kind: Literal["contribute"] = "contribute"
    draft: Hex32
    training: tuple[BatchModel, ...]
    validation: tuple[BatchModel, ...]
    patients: tuple[PatientRangeModel, ...]


class PublishPayload(Model):
    kind: Literal["publish"] = "publish"
    draft: Hex32
    contributions: tuple[Hex32, ...]
    order: tuple[Count, ...]
    batches_per_step: Count
    initial_weights: tuple[SignedInt, ...]
    optimizer: OptimizerModel
    loss_schedule: tuple[Count, ...]
    ladder: tuple[MilestoneModel, ...] = Field(max_length=MAX_LADDER)
    batch_fee: AmountInt
    bond: AmountInt
    deadline: TimeMs


class AvailablePayload(Model):
    kind: Literal["available"] = "available"
    task: Hex32


class OpenGradientPayload(Model):
    kind: Literal["open-gradient"] = "open-gradient"
    task: Hex32
    step: Count
    previous: Hex32
    weights: Hex32
    claims: tuple[ClaimModel, ...]
    confirmations: tuple[SealedClaimModel, ...] = Field(
        default=(), description="A committee's: who else had the same bundles"
    )
    gradient: tuple[SignedInt, ...]
    attempt: Count = Field(default=1, description="2: a committee's retry, which counts twice")
    cosignatures: tuple[CosignatureModel, ...] = Field(
        default=(), description="Of members of the committee, over all other fields"
    )


class OpenLossPayload(Model):
    kind: Literal["open-loss"] = "open-loss"
    task: Hex32
    step: Count
    previous: Hex32
    weights: Hex32
    ciphertext: Hex32
    loss: SignedInt
    attempt: Count = Field(default=1, description="2: a committee's retry, which counts twice")
    cosignatures: tuple[CosignatureModel, ...] = Field(
        default=(), description="Of members of the committee, over all other fields"
    )


class ExpirePayload(Model):
    kind: Literal["expire"] = "expire"
    task: Hex32
