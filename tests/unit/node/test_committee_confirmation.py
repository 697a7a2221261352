"""Which bundle is confirmed, and what a proposal may claim."""

from dataclasses import replace

import pytest

from consensus.claims import sign_claim, sign_sealed_claim
from consensus.crypto import SigningKey
from consensus.task import BlobRef, Claim, SealedClaim
from consensus.types import Hash32, Signature
from node.committee.confirmation import Confirmations, Stakes, check_gradient
from node.committee.messages import GradientContent
from node.committee.tally import Refusal, Refused

CHAIN, TASK, PREVIOUS, WEIGHTS = (Hash32(bytes([number]) * 32) for number in range(1, 5))
STEP, LENGTH = 5, 1000
MINERS = [SigningKey(bytes([number + 1]) * 32) for number in range(12)]
GOOD, BAD = (BlobRef(Hash32(bytes([number]) * 32), LENGTH) for number in (10, 11))


def build_stakes(count: int = 3, **changes: int) -> Stakes:
    """One miner an organisation, of equal stake."""
    names = {key.address: f"org{number}" for number, key in enumerate(MINERS[:count])}
    stakes = dict.fromkeys(names.values(), 10) | changes
    return Stakes(names, stakes, sum(stakes.values()))


def seal(number: int, bundle: BlobRef = GOOD, batch: int = 0) -> SealedClaim:
    return sign_sealed_claim(MINERS[number], CHAIN, TASK, STEP, batch, bundle.root)


def claim(number: int, bundle: BlobRef = GOOD, batch: int = 0) -> Claim:
    return sign_claim(MINERS[number], CHAIN, TASK, STEP, batch, bundle)


def build(batches: tuple[int, ...] = (0,)) -> Confirmations:
    return Confirmations(CHAIN, TASK, STEP, batches, LENGTH)


def test_more_than_a_third_confirms() -> None:
    """A third is not enough; two organisations of three are."""
    heard, stakes = build(), build_stakes()
    assert heard.add_seal(seal(0), stakes)
    assert heard.add_told(claim(0), stakes)
    assert heard.get_confirmed(0, stakes) is None
    assert not heard.is_tellable(0, GOOD.root, stakes)
    assert heard.add_seal(seal(1), stakes)
    assert heard.is_tellable(0, GOOD.root, stakes)
    assert heard.get_confirmed(0, stakes) == GOOD
    assert heard.build_content(PREVIOUS, WEIGHTS, stakes) == GradientContent(
        PREVIOUS, WEIGHTS, (claim(0),), (seal(1),)
    )


def test_seals_alone_confirm_nothing() -> None:
    heard, stakes = build(), build_stakes()
    for number in range(3):
        heard.add_seal(seal(number), stakes)
    assert heard.get_confirmed(0, stakes) is None
    assert heard.build_content(PREVIOUS, WEIGHTS, stakes) is None


def test_accounts_of_one_organisation_count_once() -> None:
    names = {key.address: "one" for key in MINERS[:3]}
    stakes = Stakes(names, {"one": 10, "two": 10, "three": 10}, 30)
    heard = build()
    for number in range(3):
        heard.add_seal(seal(number), stakes)
        heard.add_told(claim(number), stakes)
    assert heard.get_confirmed(0, stakes) is None


def test_a_copied_seal_fits_no_other_miner() -> None:
    """Signed as one's own, it is of no bundle."""
    heard, stakes = build(), build_stakes()
    copied = replace(seal(0), miner=MINERS[1].address, signature=Signature(b""))
    own = sign_sealed_claim(MINERS[1], CHAIN, TASK, STEP, 0, GOOD.root)
    assert copied.seal != own.seal
    assert not heard.add_seal(replace(seal(0), miner=MINERS[1].address), stakes)
    heard.add_seal(seal(0), stakes)
    heard.add_told(claim(0), stakes)
    assert heard.get_confirmed(0, stakes) is None


def test_a_root_that_no_own_seal_is_of_is_ignored() -> None:
    """Who has sealed something else, or nothing, tells in vain; another's seal does not help."""
    heard, stakes = build(), build_stakes()
    heard.add_seal(seal(0, BAD), stakes)
    heard.add_seal(seal(1), stakes)
    heard.add_seal(seal(2), stakes)
    assert not heard.add_told(claim(0), stakes)
    assert heard.get_confirmed(0, stakes) is None
    assert heard.add_told(claim(1), stakes)
    assert heard.get_confirmed(0, stakes) == GOOD


def test_a_root_may_come_before_its_seal() -> None:
    """Messages overtake each other; a wrong early one does not keep out the right one."""
    heard, stakes = build(), build_stakes()
    assert heard.add_told(claim(0, BAD), stakes)
    assert heard.add_told(claim(0), stakes)
    assert heard.get_confirmed(0, stakes) is None
    for number in (0, 1):
        heard.add_seal(seal(number), stakes)
    assert heard.get_confirmed(0, stakes) == GOOD
    assert not heard.add_told(claim(0, BAD), stakes)


def test_two_confirmed_bundles_are_none() -> None:
    heard, stakes = build(), build_stakes(4)
    for number, bundle in enumerate((GOOD, GOOD, BAD, BAD)):
        heard.add_seal(seal(number, bundle), stakes)
        heard.add_told(claim(number, bundle), stakes)
    assert heard.is_disputed(0, stakes)
    assert heard.get_confirmed(0, stakes) is None


@pytest.mark.parametrize(
    "wrong",
    [
        replace(seal(0), step=STEP + 1),
        replace(seal(0), task=CHAIN),
        replace(seal(0), batch=1),
        replace(seal(0), signature=Signature(bytes(64))),
        seal(9),
    ],
)
def test_foreign_seals_are_not_taken(wrong: SealedClaim) -> None:
    assert not build().add_seal(wrong, build_stakes())


def test_one_seal_and_one_length_of_each() -> None:
    heard, stakes = build(), build_stakes()
    assert heard.add_seal(seal(0), stakes)
    assert not heard.add_seal(seal(0, BAD), stakes)
    assert not heard.add_told(claim(0, replace(GOOD, length=LENGTH + 1)), stakes)
    assert not heard.add_told(replace(claim(0), signature=Signature(bytes(64))), stakes)
    assert not heard.add_told(claim(9), stakes)


def test_no_more_organisations_than_are_credited() -> None:
    """Those with most stake, so that a third is reached."""
    stakes = build_stakes(12, org11=1000)
    heard = build()
    for number in range(12):
        heard.add_seal(seal(number), stakes)
    heard.add_told(claim(0), stakes)
    content = heard.build_content(PREVIOUS, WEIGHTS, stakes)
    assert content is not None
    assert len(content.confirmations) == 7
    assert MINERS[11].address in {item.miner for item in content.confirmations}
    check_gradient(content, CHAIN, TASK, STEP, {0: GOOD}, stakes)


def build_content(stakes: Stakes) -> GradientContent:
    heard = build((0, 1))
    for batch in (0, 1):
        for number in (0, 1):
            heard.add_seal(seal(number, batch=batch), stakes)
        heard.add_told(claim(0, batch=batch), stakes)
    content = heard.build_content(PREVIOUS, WEIGHTS, stakes)
    assert content is not None
    assert heard.build_content(PREVIOUS, WEIGHTS, stakes, {0: GOOD}) is None
    return content


def test_proposals_are_checked_as_the_chain_will() -> None:
    stakes = build_stakes()
    content = build_content(stakes)
    bundles = {0: GOOD, 1: GOOD}
    check_gradient(content, CHAIN, TASK, STEP, bundles, stakes)

    def refuse(changed: GradientContent, confirmed: dict[int, BlobRef] = bundles) -> Refusal:
        with pytest.raises(Refused) as caught:
            check_gradient(changed, CHAIN, TASK, STEP, confirmed, stakes)
        return caught.value.reason

    first, second = content.claims
    one, two = content.confirmations
    assert refuse(content, {0: GOOD, 1: BAD}) is Refusal.UNCONFIRMED
    assert refuse(replace(content, claims=(first,))) is Refusal.CLAIMS
    assert refuse(replace(content, claims=(second, first))) is Refusal.CLAIMS
    forged = replace(first, signature=Signature(bytes(64)))
    assert refuse(replace(content, claims=(forged, second))) is Refusal.CLAIMS
    assert refuse(replace(content, claims=(claim(9), second))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(one,))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(two, one))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(one, one, two))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(seal(0), two))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(seal(1, BAD), two))) is Refusal.CLAIMS
    assert refuse(replace(content, confirmations=(replace(one, step=9), two))) is Refusal.CLAIMS
