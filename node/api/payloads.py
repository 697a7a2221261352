"""Transaction payloads as JSON, converted to and from the consensus dataclasses.

Bytes are lower-case hexadecimal; amounts (smallest units) and times (milliseconds) are integers.
"""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter

from consensus import ceremonies, federations, jobs
from consensus import payload as judging
from consensus import task as core
from consensus.payload import Payload
from node.api.ceremony_payloads import (
    CommitRoundPayload,
    ConfirmCeremonyPayload,
    CreateCeremonyPayload,
    EndCeremonyPayload,
    RevealRoundPayload,
)
from node.api.federation_payloads import (
    AttestUpdatesPayload,
    CloseRoundPayload,
    ConfirmSumPayload,
    CreateFederationPayload,
    EndFederationPayload,
    JudgeRoundPayload,
    OpenSumPayload,
    SettleRoundPayload,
    SubmitUpdatePayload,
)
from node.api.fields import BlobRefModel
from node.api.job_payloads import (
    CloseCommitsPayload,
    CommitResultPayload,
    ExpireJobPayload,
    RegisterModelPayload,
    RequestInferencePayload,
    RetireModelPayload,
    RevealResultPayload,
)
from node.api.judging_payloads import (
    KINDS,
    AccusePayload,
    GovernPayload,
    ReportOpeningsPayload,
    ReportVotesPayload,
    SettlePayload,
    VerdictPayload,
)
from node.api.task_payloads import (
    AvailablePayload,
    ContributePayload,
    DraftPayload,
    ExpirePayload,
    OpenGradientPayload,
    OpenLossPayload,
    PublishPayload,
    TransferPayload,
)

T = TypeVar("T")

PayloadModel = Annotated[
    TransferPayload
    | DraftPayload
    | ContributePayload
    | PublishPayload
    | AvailablePayload
    | OpenGradientPayload
    | OpenLossPayload
    | ExpirePayload
    | VerdictPayload
    | SettlePayload
    | ReportVotesPayload
    | ReportOpeningsPayload
    | AccusePayload
    | GovernPayload
    | RegisterModelPayload
    | RetireModelPayload
    | RequestInferencePayload
    | CommitResultPayload
    | CloseCommitsPayload
    | RevealResultPayload
    | ExpireJobPayload
    | CreateFederationPayload
    | SubmitUpdatePayload
    | AttestUpdatesPayload
    | CloseRoundPayload
    | ConfirmSumPayload
    | OpenSumPayload
    | JudgeRoundPayload
    | SettleRoundPayload
    | EndFederationPayload
    | CreateCeremonyPayload
    | CommitRoundPayload
    | RevealRoundPayload
    | ConfirmCeremonyPayload
    | EndCeremonyPayload,
    Field(discriminator="kind"),
]

SignablePayload = Annotated[
    TransferPayload
    | DraftPayload
    | ContributePayload
    | PublishPayload
    | ExpirePayload
    | GovernPayload
    | RegisterModelPayload
    | RetireModelPayload
    | RequestInferencePayload
    | ExpireJobPayload
    | CreateFederationPayload
    | SubmitUpdatePayload
    | CloseRoundPayload
    | SettleRoundPayload
    | EndFederationPayload
    | CreateCeremonyPayload
    | EndCeremonyPayload,
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
    | VerdictPayload
    | SettlePayload
    | ReportVotesPayload
    | ReportOpeningsPayload
    | AccusePayload
    | GovernPayload
    | RegisterModelPayload
    | RetireModelPayload
    | RequestInferencePayload
    | CommitResultPayload
    | CloseCommitsPayload
    | RevealResultPayload
    | ExpireJobPayload
    | CreateFederationPayload
    | SubmitUpdatePayload
    | AttestUpdatesPayload
    | CloseRoundPayload
    | ConfirmSumPayload
    | OpenSumPayload
    | JudgeRoundPayload
    | SettleRoundPayload
    | EndFederationPayload
    | CreateCeremonyPayload
    | CommitRoundPayload
    | RevealRoundPayload
    | ConfirmCeremonyPayload
    | EndCeremonyPayload
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
    judging.Verdict: VerdictPayload,
    judging.SettleTask: SettlePayload,
    judging.ReportVotes: ReportVotesPayload,
    judging.ReportOpenings: ReportOpeningsPayload,
    judging.Accuse: AccusePayload,
    judging.Govern: GovernPayload,
    jobs.RegisterModel: RegisterModelPayload,
    jobs.RetireModel: RetireModelPayload,
    jobs.RequestInference: RequestInferencePayload,
    jobs.CommitResult: CommitResultPayload,
    jobs.CloseCommits: CloseCommitsPayload,
    jobs.RevealResult: RevealResultPayload,
    jobs.ExpireJob: ExpireJobPayload,
    federations.CreateFederation: CreateFederationPayload,
    federations.SubmitUpdate: SubmitUpdatePayload,
    federations.AttestUpdates: AttestUpdatesPayload,
    federations.CloseRound: CloseRoundPayload,
    federations.ConfirmSum: ConfirmSumPayload,
    federations.OpenSum: OpenSumPayload,
    federations.JudgeRound: JudgeRoundPayload,
    federations.SettleRound: SettleRoundPayload,
    federations.EndFederation: EndFederationPayload,
    ceremonies.CreateCeremony: CreateCeremonyPayload,
    ceremonies.CommitRound: CommitRoundPayload,
    ceremonies.RevealRound: RevealRoundPayload,
    ceremonies.ConfirmCeremony: ConfirmCeremonyPayload,
    ceremonies.EndCeremony: EndCeremonyPayload,
}
_CORES: dict[type[AnyPayload], type[Payload]] = {model: kind for kind, model in _MODELS.items()}
_KIND_CORES: dict[type[BaseModel], type] = {model: kind for kind, model in KINDS.items()}
_KIND_CORES[BlobRefModel] = core.BlobRef  # where there may be none

payload_adapter: TypeAdapter[AnyPayload] = TypeAdapter(PayloadModel)


def get_kind(payload: Payload) -> str:
    """The payload's name in JSON."""
    return str(_MODELS[type(payload)].model_fields["kind"].default)


def encode_payload(payload: Payload) -> AnyPayload:
    """The payload's JSON model."""
    return _MODELS[type(payload)].model_validate(_to_plain(payload))


def _to_plain(value: object) -> object:
    """Dataclasses as dictionaries; those that may stand where others may too say which they are."""
    if isinstance(value, tuple):
        return tuple(map(_to_plain, value))
    if not is_dataclass(value):
        return value
    plain = {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if type(value) in KINDS:
        plain["kind"] = KINDS[type(value)].model_fields["kind"].default
    return plain


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
    if get_origin(hint) in (Union, UnionType) and isinstance(value, BaseModel):
        return build_core(_KIND_CORES[type(value)], value)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, BaseModel):
        return build_core(hint, value)
    return value
