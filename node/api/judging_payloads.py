"""Payloads that judge and govern as JSON: verdicts, evidence, changes that a quorum signs."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from consensus import payload as judging
from consensus import task as core
from node.api.fields import (
    AmountInt,
    ClaimModel,
    Count,
    Hex32,
    Hex64,
    Model,
    SignedInt,
    ValidatorStakeModel,
    VoteModel,
)
from node.api.task_payloads import OpenGradientPayload, OpenLossPayload


class VerdictPayload(Model):
    """A validator's judgement of a milestone on private pairs of its own."""

    kind: Literal["verdict"] = "verdict"
    task: Hex32
    loss_opening: Hex32
    accept: bool
    before: SignedInt = Field(description="Loss of the last settled model on those pairs, opened units")
    after: SignedInt = Field(description="Loss of the milestone's model on them")


class SettlePayload(Model):
    kind: Literal["settle"] = "settle"
    task: Hex32
    loss_opening: Hex32


class ReportVotesPayload(Model):
    """Evidence: two votes of which no honest validator signs both."""

    kind: Literal["report-votes"] = "report-votes"
    first: VoteModel
    second: VoteModel


class WrongBundleModel(Model):
    kind: Literal["wrong-bundle"] = "wrong-bundle"
    claim: ClaimModel
    canonical: Hex32 = Field(description="Root of the canonical bundle")


class WrongLossModel(Model):
    kind: Literal["wrong-loss"] = "wrong-loss"
    opening: OpenLossPayload
    signature: Hex64
    canonical: Hex32 = Field(description="What the loss ciphertexts hash to")


class SetValidatorsModel(Model):
    kind: Literal["set-validators"] = "set-validators"
    validators: tuple[ValidatorStakeModel, ...]


class SetMiningOrganisationsModel(Model):
    kind: Literal["set-mining-organisations"] = "set-mining-organisations"
    organisations: tuple[str, ...]


class SetOrganisationModel(Model):
    kind: Literal["set-organisation"] = "set-organisation"
    address: Hex32
    organisation: str


class ReinstateModel(Model):
    kind: Literal["reinstate"] = "reinstate"
    organisation: str


class GrantModel(Model):
    kind: Literal["grant"] = "grant"
    to: Hex32
    amount: AmountInt


class ScheduleUpgradeModel(Model):
    """Blocks from this height on obey the rules of this protocol version."""

    kind: Literal["schedule-upgrade"] = "schedule-upgrade"
    version: Count
    height: Count


class CancelUpgradeModel(Model):
    """Takes back the upgrade that is scheduled, named in full."""

    kind: Literal["cancel-upgrade"] = "cancel-upgrade"
    version: Count
    height: Count


OpeningModel = Annotated[OpenGradientPayload | OpenLossPayload, Field(discriminator="kind")]
AccusationModel = Annotated[WrongBundleModel | WrongLossModel, Field(discriminator="kind")]
ActionModel = Annotated[
    SetValidatorsModel
    | SetMiningOrganisationsModel
    | SetOrganisationModel
    | ReinstateModel
    | GrantModel
    | ScheduleUpgradeModel
    | CancelUpgradeModel,
    Field(discriminator="kind"),
]


class SignedOpeningModel(Model):
    opening: OpeningModel
    signature: Hex64


class ReportOpeningsPayload(Model):
    """Evidence: two different openings of one step."""

    kind: Literal["report-openings"] = "report-openings"
    first: SignedOpeningModel
    second: SignedOpeningModel


class AccusePayload(Model):
    """Evidence by recomputation; takes effect when two thirds of stake sent the same."""

    kind: Literal["accuse"] = "accuse"
    accusation: AccusationModel


class GovernanceModel(Model):
    sequence: Count
    action: ActionModel


class ApprovalModel(Model):
    validator: Hex32
    signature: Hex64


class GovernPayload(Model):
    """A change that a quorum of validators signed."""

    kind: Literal["govern"] = "govern"
    governance: GovernanceModel
    approvals: tuple[ApprovalModel, ...]


KINDS: dict[type, type[BaseModel]] = {
    core.OpenGradient: OpenGradientPayload,
    core.OpenLoss: OpenLossPayload,
    judging.WrongBundle: WrongBundleModel,
    judging.WrongLoss: WrongLossModel,
    judging.SetValidators: SetValidatorsModel,
    judging.SetMiningOrganisations: SetMiningOrganisationsModel,
    judging.SetOrganisation: SetOrganisationModel,
    judging.Reinstate: ReinstateModel,
    judging.Grant: GrantModel,
    judging.ScheduleUpgrade: ScheduleUpgradeModel,
    judging.CancelUpgrade: CancelUpgradeModel,
}
"""Models of the kinds that stand inside others, where any of several may."""
