"""Every payload goes to JSON and back without loss; a foreign one is refused by field."""

import json

import pytest
from pydantic import ValidationError

from consensus import ceremonies, federations, jobs
from consensus import payload as judging
from consensus import task as core
from consensus.params import Validator
from consensus.payload import Payload
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Height, Millis, Signature
from consensus.vote import Checkpoint, Vote
from node.api.payloads import decode_payload, encode_payload, get_kind, payload_adapter
from tests.unit.node_api.fakes import BLOB, CONTRIBUTION, DRAFT

HASH = Hash32(bytes(range(32)))
SIGNATURE = Signature(bytes(64))
CLAIM = core.Claim(HASH, 1, 0, BLOB, Address(HASH), SIGNATURE)
SEALED = core.SealedClaim(HASH, 1, 0, ZERO_HASH, Address(HASH), SIGNATURE)
COSIGNATURE = core.Cosignature(Address(HASH), SIGNATURE)
LOSS = core.OpenLoss(HASH, 1, HASH, HASH, HASH, -3, 2, (COSIGNATURE,))
GRADIENT = core.OpenGradient(HASH, 1, HASH, HASH, (CLAIM,), (SEALED,), (-1, 2), 1, ())
VOTE = Vote(Address(HASH), Checkpoint(Height(1), HASH), Checkpoint(Height(2), ZERO_HASH), SIGNATURE)
ACTIONS: tuple[judging.Action, ...] = (
    judging.SetValidators((Validator(Address(HASH), 7),)),
    judging.SetMiningOrganisations(("lab", "hospital")),
    judging.SetOrganisation(Address(HASH), ""),
    judging.Reinstate("lab"),
    judging.Grant(Address(HASH), Amount(3)),
    judging.ScheduleUpgrade(2, Height(9_000)),
    judging.CancelUpgrade(2, Height(9_000)),
)
PAYLOADS: tuple[Payload, ...] = (
    core.Transfer(Address(HASH), Amount(2**63 - 1)),
    core.DraftTask(DRAFT),
    core.Contribute(
        HASH, CONTRIBUTION.training, CONTRIBUTION.validation, (core.PatientRange(3, True, 0, 0, 300),)
    ),
    core.PublishTask(
        HASH,
        (HASH, ZERO_HASH),
        (1, 0),
        1,
        (-5, 0, 2**40),
        core.Optimizer(40, (7, 8)),
        (0, 2),
        (core.Milestone(10, Amount(1)),),
        Amount(1),
        Amount(2),
        Millis(3),
    ),
    core.Available(HASH),
    GRADIENT,
    LOSS,
    core.ExpireTask(HASH),
    judging.Verdict(HASH, ZERO_HASH, False, -(2**40), 3),
    judging.SettleTask(HASH, ZERO_HASH),
    judging.ReportVotes(VOTE, VOTE),
    judging.ReportOpenings(
        judging.SignedOpening(LOSS, SIGNATURE), judging.SignedOpening(GRADIENT, SIGNATURE)
    ),
    judging.Accuse(judging.WrongBundle(CLAIM, ZERO_HASH)),
    judging.Accuse(judging.WrongLoss(LOSS, SIGNATURE, ZERO_HASH)),
    *(
        judging.Govern(judging.Governance(n, action), (judging.Approval(Address(HASH), SIGNATURE),))
        for n, action in enumerate(ACTIONS)
    ),
    *(
        jobs.RegisterModel("diagnosis", "name", "where from", HASH, BLOB, keys, 1, 2, 3, Amount(4), Millis(5))
        for keys in (None, BLOB)
    ),
    jobs.RetireModel(HASH),
    jobs.RequestInference(HASH, BLOB, BLOB, Amount(7), Millis(8), Millis(9)),
    jobs.CommitResult(HASH, ZERO_HASH),
    jobs.CloseCommits(HASH),
    jobs.RevealResult(HASH, ZERO_HASH),
    jobs.ExpireJob(HASH),
    federations.CreateFederation(
        "lungs",
        "what of",
        BLOB,
        BLOB,
        10,
        BLOB,
        1000,
        (federations.Participant(Address(HASH), 3), federations.Participant(Address(ZERO_HASH), 4)),
        2,
        5,
        4,
        Millis(1),
        Millis(2),
        Millis(3),
        7,
        8,
        9,
        (core.Milestone(10, Amount(1)),),
        Millis(11),
    ),
    ceremonies.CreateCeremony("cardiac", "preset", (Address(ZERO_HASH), Address(HASH)), 2, Millis(3), HASH),
    ceremonies.CommitRound(HASH, 1, ZERO_HASH),
    ceremonies.RevealRound(HASH, 1, BLOB, bytes(32)),
    ceremonies.ConfirmCeremony(HASH, BLOB, BLOB, HASH),
    ceremonies.EndCeremony(HASH),
    federations.SubmitUpdate(HASH, 1, BLOB),
    federations.AttestUpdates(HASH, 1, (HASH,)),
    federations.CloseRound(HASH, 1),
    federations.ConfirmSum(HASH, 1, ZERO_HASH),
    federations.OpenSum(HASH, 1, ZERO_HASH, BLOB, BLOB),
    federations.JudgeRound(HASH, 1, ZERO_HASH, 2, 3),
    federations.SettleRound(HASH, 1),
    federations.EndFederation(HASH),
)


@pytest.mark.parametrize("payload", PAYLOADS, ids=get_kind)
def test_json_round_trip_is_exact(payload: Payload) -> None:
    text = encode_payload(payload).model_dump_json()
    assert json.loads(text)["kind"] == get_kind(payload)
    assert decode_payload(payload_adapter.validate_json(text)) == payload


def test_every_kind_has_a_model() -> None:
    assert {type(payload) for payload in PAYLOADS} == set(Payload.__args__)
    assert {type(action) for action in ACTIONS} == set(judging.Action.__args__)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"kind": "bribe"}, ()),
        ({"kind": "transfer", "to": "00", "amount": 1}, ("transfer", "to")),
        ({"kind": "transfer", "to": "AB" * 32, "amount": 1}, ("transfer", "to")),
        ({"kind": "transfer", "to": "ab" * 32, "amount": -1}, ("transfer", "amount")),
        ({"kind": "transfer", "to": "ab" * 32, "amount": 1.0}, ("transfer", "amount")),
        ({"kind": "transfer", "to": "ab" * 32, "amount": 1, "fee": 1}, ("transfer", "fee")),
    ],
)
def test_a_wrong_payload_is_refused_by_field(document: dict[str, object], field: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        payload_adapter.validate_json(json.dumps(document))
    assert caught.value.errors()[0]["loc"] == field
