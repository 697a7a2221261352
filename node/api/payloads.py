"""Transaction payloads as JSON: one pydantic model a kind, converted to and from the consensus dataclasses.

Bytes are lower-case hexadecimal; amounts (smallest units) and times (milliseconds) are integers.
"""

from dataclasses import fields, is_dataclass
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
)

from consensus import task as core
from consensus.payload import Payload
from consensus.types import MAX_AMOUNT, MAX_LADDER, MAX_TIME_MS

T = TypeVar("T")


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


class BlobRefModel(Model):
    """A content-addressed blob."""

    root: Hex32
    length: Count = Field(description="Bytes")


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


class ClaimModel(Model):
    task: Hex32
    step: Count
    batch: Count
    bundle: BlobRefModel
    miner: Hex32
    signature: Hex64


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
    gradient: tuple[SignedInt, ...]


class OpenLossPayload(Model):
    kind: Literal["open-loss"] = "open-loss"
    task: Hex32
    step: Count
    previous: Hex32
    weights: Hex32
    ciphertext: Hex32
    loss: SignedInt


class ExpirePayload(Model):
    kind: Literal["expire"] = "expire"
    task: Hex32


PayloadModel = Annotated[
    TransferPayload
    | DraftPayload
    | ContributePayload
    | PublishPayload
    | AvailablePayload
    | OpenGradientPayload
    | OpenLossPayload
    | ExpirePayload,
    Field(discriminator="kind"),
]

SignablePayload = Annotated[
    TransferPayload | DraftPayload | ContributePayload | PublishPayload | ExpirePayload,
    Field(discriminator="kind"),
]
"""What an operator may ask the node to sign; the rest the node's services sign by themselves."""

AnyPayload = (
    TransferPayload
    | DraftPayload
    | ContributePayload
    | PublishPayload
    | AvailablePayload
    | OpenGradientPayload
    | OpenLossPayload
    | ExpirePayload
)

_MODELS: dict[type[Payload], type[AnyPayload]] = {
    core.Transfer: TransferPayload,
    core.DraftTask: DraftPayload,
    core.Contribute: ContributePayload,
    core.PublishTask: PublishPayload,
    core.Available: AvailablePayload,
    core.OpenGradient: OpenGradientPayload,
    core.OpenLoss: OpenLossPayload,
    core.ExpireTask: ExpirePayload,
}
_CORES: dict[type[AnyPayload], type[Payload]] = {model: kind for kind, model in _MODELS.items()}

payload_adapter: TypeAdapter[AnyPayload] = TypeAdapter(PayloadModel)


def get_kind(payload: Payload) -> str:
    """The payload's name in JSON."""
    return str(_MODELS[type(payload)].model_fields["kind"].default)


def encode_payload(payload: Payload) -> AnyPayload:
    """The payload's JSON model."""
    return _MODELS[type(payload)].model_validate(payload)


def decode_payload(model: AnyPayload) -> Payload:
    """The consensus payload that a validated model describes."""
    return build_core(_CORES[type(model)], model)


def build_core(kind: type[T], model: BaseModel) -> T:
    """A frozen dataclass from the model with the same field names; hexadecimal becomes bytes."""
    hints = get_type_hints(kind)
    if not is_dataclass(kind):
        raise TypeError(f"Expected a dataclass. Got {kind.__name__}")
    values = {field.name: _convert(hints[field.name], getattr(model, field.name)) for field in fields(kind)}
    return kind(**values)


def _convert(hint: object, value: object) -> object:
    hint = getattr(hint, "__supertype__", hint)
    if hint is bytes and isinstance(value, str):
        return bytes.fromhex(value)
    if get_origin(hint) is tuple and isinstance(value, tuple):
        inner = get_args(hint)[0]
        return tuple(_convert(inner, item) for item in value)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, BaseModel):
        return build_core(hint, value)
    return value
