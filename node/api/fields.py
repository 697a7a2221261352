"""Building blocks of the API's models: hexadecimal bytes, amounts, times, records that several share."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from consensus.types import MAX_AMOUNT, MAX_TIME_MS


def _to_hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


HexBytes = Annotated[str, BeforeValidator(_to_hex), StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
Hex32 = Annotated[
    str,
    BeforeValidator(_to_hex),
    StringConstraints(pattern=r"^[0-9a-f]{64}$"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "32 bytes, hexadecimal"}),
]
Hex64 = Annotated[
    str,
    BeforeValidator(_to_hex),
    StringConstraints(pattern=r"^[0-9a-f]{128}$"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{128}$", "description": "64 bytes, hexadecimal"}),
]
AmountInt = Annotated[int, Field(ge=0, le=MAX_AMOUNT, description="Money, smallest units")]
TimeMs = Annotated[int, Field(ge=0, le=MAX_TIME_MS, description="Milliseconds since the Unix epoch")]
Count = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
SignedInt = Annotated[int, Field(ge=-(2**63), le=MAX_AMOUNT)]


class Model(BaseModel):
    """Closed to unknown fields; integers are integers; read from a dataclass of the same field names."""

    model_config = ConfigDict(extra="forbid", strict=True, from_attributes=True, frozen=True)


class CriterionModel(Model):
    """One thing that a node is asked before it is called ready."""

    name: str = Field(
        description="`draining`, `ledger`, `recovery`, `lag`, `tip_age`, `peers`, `clock`, `disk`, `voting` "
        "or `protocol`"
    )
    ok: bool
    blocking: bool = Field(description="Whether the node is not ready without it")
    detail: str = Field(description="What was found")


class BlobRefModel(Model):
    """A content-addressed blob."""

    root: Hex32
    length: Count = Field(description="Bytes")


class ClaimModel(Model):
    task: Hex32
    step: Count
    batch: Count
    bundle: BlobRefModel
    miner: Hex32
    signature: Hex64


class SealedClaimModel(Model):
    """A claim that does not tell its bundle's root."""

    task: Hex32
    step: Count
    batch: Count
    seal: Hex32 = Field(description="Of the root and the miner")
    miner: Hex32
    signature: Hex64


class CosignatureModel(Model):
    member: Hex32
    signature: Hex64


class CheckpointModel(Model):
    height: Count
    hash: Hex32


class VoteModel(Model):
    """A validator's signed link from a justified block to a later one."""

    validator: Hex32
    source: CheckpointModel
    target: CheckpointModel
    signature: Hex64


class ValidatorStakeModel(Model):
    address: Hex32
    stake: Count
