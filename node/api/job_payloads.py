"""Payloads of encrypted inference as JSON: models, requests, commitments, results."""

from typing import Literal

from pydantic import Field

from node.api.fields import AmountInt, BlobRefModel, Count, Hex32, Model, TimeMs


class RegisterModelPayload(Model):
    """A model that anyone may have evaluated; see `consensus.jobs.RegisterModel`."""

    kind: Literal["register-model"] = "register-model"
    workload: str = Field(description="`diagnosis` or `sequence-diagnosis`")
    label: str
    provenance: str = Field(description="The owner's statement; nobody checks it")
    evidence: Hex32 = Field(description="Digest of what the statement refers to; zeros for none")
    model: BlobRefModel
    keys: BlobRefModel | None = Field(
        description="Evaluation keys that every request must name; null for clear weights"
    )
    keys_bytes: Count
    request_bytes: Count
    result_bytes: Count
    price: AmountInt
    expires: TimeMs


class RetireModelPayload(Model):
    kind: Literal["retire-model"] = "retire-model"
    model: Hex32


class RequestInferencePayload(Model):
    kind: Literal["request-inference"] = "request-inference"
    model: Hex32
    request: BlobRefModel
    keys: BlobRefModel
    fee: AmountInt
    commit_until: TimeMs
    deadline: TimeMs


class CommitResultPayload(Model):
    kind: Literal["commit-result"] = "commit-result"
    job: Hex32
    commitment: Hex32


class CloseCommitsPayload(Model):
    kind: Literal["close-commits"] = "close-commits"
    job: Hex32


class RevealResultPayload(Model):
    kind: Literal["reveal-result"] = "reveal-result"
    job: Hex32
    result: Hex32 = Field(description="Root of the result's blob")


class ExpireJobPayload(Model):
    kind: Literal["expire-job"] = "expire-job"
    job: Hex32
