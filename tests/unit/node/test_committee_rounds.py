"""Members come to one opening, whoever dies, restarts, lies or is late."""

import random
from dataclasses import replace

import pytest

from consensus.types import Hash32, Signature
from node.committee.boxes import SharedBox
from node.committee.choice import Suspects
from node.committee.messages import (
    Cosign,
    LossContent,
    Partial,
    Proposal,
    Ready,
    compute_proposal_id,
    compute_question,
    decode_message,
    encode_content,
    encode_message,
    seal_proposal,
    sign_message,
)
from node.committee.ports import Effects
from node.committee.records import Answered, Cosigned, Record
from node.committee.tally import Fault, Refusal
from node.committee.terms import Terms, TermsError
from tests.unit.node.committee_sim import (
    CEREMONY,
    CHAIN,
    CONTENT,
    MESSAGE,
    NOISE,
    PRIMES,
    STEP,
    TASK,
    WAITS,
    Node,
    Sim,
    build_keys,
    build_terms,
)

SHAPES = ((3, 2), (5, 3))
MOST_TAKEN = 4
"""Steps until honest leads leave out who is wrong in first attempts."""
HASH = Hash32(bytes(32))


def propose(
    sim: Sim, lead: Node, subset: tuple[int, ...], attempt: int = 1, content: LossContent = CONTENT
) -> bytes:
    """A proposal as its lead would sign it, whatever it is of."""
    terms = sim.terms
    blank = Proposal(
        CEREMONY, TASK, STEP, terms.kind, attempt, lead.key.address, subset,
        compute_question(TASK, STEP, content), HASH, SharedBox(b"", ()), Signature(b""),
    )  # fmt: skip
    return encode_message(seal_proposal(lead.key, CHAIN, blank, encode_content(content), tuple(sim.publics)))


def answer(sim: Sim, node: Node, proposal: bytes, values: tuple[tuple[int, ...], ...]) -> bytes:
    found = decode_message(proposal)
    assert isinstance(found, Proposal)
    partial = Partial(
        CEREMONY, TASK, STEP, found.kind, found.attempt, node.key.address,
        compute_proposal_id(found), values, Signature(b""),
    )  # fmt: skip
    return encode_message(sign_message(node.key, CHAIN, partial))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", SHAPES)
def test_all_come_to_one_opening(shape: tuple[int, int], seed: int) -> None:
    """A fifth of all messages lost, a third doubled."""
    sim = Sim(*shape, seed, drop=0.2, twice=0.3)
    sim.start()
    sim.run()
    assert sim.check(alive=shape[0]).attempt == 1
    assert sim.rejected == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_is_dead_from_the_start(shape: tuple[int, int], seed: int, rank: int) -> None:
    """Whoever it is, the lead too: it is in no subset, and its turn passes."""
    sim = Sim(*shape, seed, drop=0.1)
    sim.start(dead=(sim.leads[rank],))
    sim.run()
    assert sim.check(alive=shape[0] - 1).attempt == 1


def test_two_of_five_are_dead() -> None:
    sim = Sim(5, 3)
    sim.start(dead=(sim.leads[0], sim.leads[1]))
    sim.run()
    assert sim.check(alive=3).attempt == 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_between_ready_and_part(shape: tuple[int, int], seed: int, rank: int) -> None:
    """Its part is missing, so attempt 2 has another subset; it is counted."""
    sim = Sim(*shape, seed, twice=0.3)
    victim = sim.leads[rank]
    victim.crash = lambda stage, effects: stage == "before" and holds(effects, Answered)
    sim.start(ordered=True)
    sim.expected -= 1
    sim.run()
    opened = sim.check(alive=shape[0] - 1)
    assert opened.attempt == 2
    assert all("answered/2" not in name.decode() for name in victim.disk)


def holds(effects: Effects, kind: type[Record]) -> bool:
    return any(isinstance(record, kind) for record in effects.records)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [Answered, Cosigned])
@pytest.mark.parametrize("stage", ["before", "stored"])
@pytest.mark.parametrize("shape", SHAPES)
def test_killed_at_a_record_and_restarted(
    shape: tuple[int, int], stage: str, kind: type[Record], seed: int
) -> None:
    """It goes on from what is on its disk, and says nothing else than before."""
    sim = Sim(*shape, seed, drop=0.1)
    victim = sim.leads[0]

    def crash(at: str, effects: Effects) -> bool:
        if at != stage or not holds(effects, kind):
            return False
        victim.crash = None
        sim.at(3_000, victim.start)
        sim.at(3_500, victim.check)
        return True

    victim.crash = crash
    sim.start()
    sim.run()
    assert sim.check(alive=shape[0]).attempt == 1
    assert victim.life == 2
    assert not sim.get_evidence()


@pytest.mark.parametrize("seed", range(4))
def test_everybody_restarts_all_the_time(seed: int) -> None:
    """What a member says of one thing has the same bytes in every life."""
    sim = Sim(3, 2, seed, drop=0.1)
    sim.start()
    for node in sim.nodes:
        for number in range(6):
            at = 700 + 900 * number + 250 * node.place
            sim.at(at, node.stop)
            sim.at(at + 100, node.start)
            sim.at(at + 150, node.check)
    sim.run()
    sim.check(alive=3)
    assert not sim.get_evidence()
    for node in sim.nodes:
        said = {(type(m), getattr(m, "attempt", 0), encode_message(m)) for m in node.sent}
        assert len(said) == len({key[:2] for key in said})


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_there_is_one_opening(seed: int) -> None:
    """Members stop and start at any time, messages are lost and late, one may be wrong: never two openings,
    nobody answers twice; without a wrong one all have it in the end."""
    draw = random.Random(seed)
    sim = Sim(
        *draw.choice(((3, 2), (5, 3), (4, 3), (3, 3))), seed, drop=draw.choice((0, 0.1, 0.3)), twice=0.2
    )
    sim.delay = draw.choice((50, 100, 400))
    sim.start()
    for node in sim.nodes:
        for _ in range(draw.randrange(3)):
            down = draw.randrange(25_000)
            up = down + draw.randrange(100, 20_000)
            sim.at(down, node.stop)
            sim.at(up, node.start)
            sim.at(up + 50, node.check)
    has_wrong = draw.random() < 0.2
    if has_wrong:
        draw.choice(sim.nodes).wrong = True
    sim.run(150_000)
    assert len({item.hash for item in sim.get_opened()}) <= 1
    assert not sim.get_evidence()
    for node in sim.nodes:
        parts = [message for message in node.sent if isinstance(message, Partial)]
        said = {(message.attempt, encode_message(message)) for message in parts}
        assert len(said) == len({attempt for attempt, _ in said})
    if not has_wrong:
        sim.check(alive=len(sim.nodes))


def open_steps(
    shape: tuple[int, int], wrong: int, steps: range, attempts: tuple[int, ...] = (1, 2)
) -> tuple[list[int], list[int], Sim]:
    """Openings of one committee, one of which is wrong in these attempts of each; steps that were closed, and
    those retried."""
    closed, retried = [], []
    suspects = [Suspects() for _ in range(shape[0])]
    for step in steps:
        sim = Sim(*shape, step, step=step)
        for node, known in zip(sim.nodes, suspects, strict=True):
            node.suspects = known
        sim.nodes[wrong].wrong = attempts
        sim.start(ordered=True)
        sim.run()
        if not sim.get_opened():
            assert all(node.closed and "no third" in node.closed for node in sim.nodes)
            closed.append(step)
            for node in sim.nodes:
                assert {name for name in node.disk if name.startswith(b"answered")} <= {
                    b"answered/1",
                    b"answered/2",
                }
        elif sim.check(alive=shape[0]).attempt == 2:
            retried.append(step)
    return closed, retried, sim


@pytest.mark.parametrize("shape", [(3, 2), (4, 3), (5, 3), (8, 5)])
def test_who_spoils_openings_is_soon_left_out(shape: tuple[int, int]) -> None:
    """Its first wrong part may close an opening, if attempt 2 takes it again; then it is known well enough,
    and costs a retry in the steps that it leads."""
    lost = 0
    for wrong in range(shape[0]):
        steps = range(100 * wrong, 100 * wrong + 24)
        closed, retried, sim = open_steps(shape, wrong, steps)
        spoiled = sorted(closed + retried)
        assert spoiled
        assert set(closed) <= set(spoiled[:1])
        assert wrong in sim.nodes[wrong - 1].suspects.get_common()
        address = sim.terms.members[wrong]
        led = [step for step in steps if build_terms(*shape, step).leads[0] == address]
        assert set(spoiled[2:]) <= set(led)
        lost += len(closed)
    assert lost < shape[0]


@pytest.mark.parametrize("shape", [(3, 2), (5, 3)])
def test_who_is_wrong_in_first_attempts_alone_is_left_out_too(shape: tuple[int, int]) -> None:
    """Its right part in attempt 2 puts the blame on others, but only it is in all that fails."""
    for wrong in range(shape[0]):
        steps = range(100 * wrong, 100 * wrong + 24)
        closed, retried, sim = open_steps(shape, wrong, steps, attempts=(1,))
        assert not closed
        assert retried
        assert wrong in sim.nodes[wrong - 1].suspects.get_common()
        address = sim.terms.members[wrong]
        led = [step for step in steps if build_terms(*shape, step).leads[0] == address]
        assert len(set(retried) - set(led)) <= MOST_TAKEN


def test_who_was_right_afterwards_is_suspected_half_as_much() -> None:
    suspects, other = Suspects(), Hash32(bytes([1]) * 32)
    assert suspects.get_common() == ()
    suspects.note(HASH, (0, 1))
    assert (suspects.count(0), suspects.count(1), suspects.count(2)) == (2, 2, 0)
    assert suspects.get_common() == (0, 1)
    suspects.note(HASH, (0, 1), right={0, 2})
    assert (suspects.count(0), suspects.count(1), suspects.count(2)) == (1, 2, 0)
    suspects.note(other, (0, 2))
    assert (suspects.count(0), suspects.count(2)) == (3, 2)
    assert suspects.get_common() == (0,)


def test_without_budget_for_two_attempts_the_first_failure_closes() -> None:
    sim = Sim(3, 2)
    sim.judge.budget = 1
    sim.leads[1].wrong = True
    sim.start(ordered=True)
    sim.run()
    assert sim.get_opened() == []
    assert all(node.closed and "open no more" in node.closed for node in sim.nodes)
    assert not any(b"answered/2" in node.disk for node in sim.nodes)


@pytest.mark.parametrize("seed", range(4))
def test_a_lead_that_tells_two_subsets_is_answered_by_nobody(seed: int) -> None:
    """Relays bring both proposals to both before they answer; the next rank leads."""
    sim = Sim(3, 2, seed)
    liar, *others = sim.leads
    sim.start(dead=(liar,))
    sim.run(3_000)
    for other in others:
        subset = tuple(sorted((liar.place, other.place)))
        sim.at(0, other.hear, propose(sim, liar, subset))
    sim.run()
    assert sim.check(alive=2).attempt == 1
    assert {(item.fault, item.member) for item in sim.get_evidence()} == {
        (Fault.TWO_PROPOSALS, liar.key.address)
    }
    first, second = (
        decode_message(data) for data in (sim.get_evidence()[0].first, sim.get_evidence()[0].second)
    )
    assert first != second


def test_a_lead_that_outruns_the_relays_is_named_and_left_out() -> None:
    """What `settle` can't do: two members that do not hear each other answer two subsets of one attempt, and
    the liar, in both, could combine either. Nobody signs them; attempt 2 is without it."""
    sim = Sim(3, 2)
    liar, *others = sim.leads
    sim.start(dead=(liar,))
    sim.run(3_000)
    names = {other.place: propose(sim, liar, tuple(sorted((liar.place, other.place)))) for other in others}
    sim.cut = lambda sender, receiver, data: True
    for other in others:
        sim.at(0, other.hear, names[other.place])
    sim.run(1_500)
    assert all(b"answered/1" in other.disk for other in others)
    assert sim.get_evidence() == []
    sim.cut = lambda sender, receiver, data: False
    for other, told in zip(others, reversed(others), strict=True):
        sim.at(10, other.hear, names[told.place])
    sim.run()
    opened = sim.check(alive=2)
    assert opened.attempt == 2
    assert liar.key.address not in {item.member for item in opened.cosignatures}
    assert {item.fault for item in sim.get_evidence()} == {Fault.TWO_PROPOSALS}


def test_a_chosen_ciphertext_is_answered_by_nobody() -> None:
    """What this member has not confirmed itself gives it no part, whoever proposes it."""
    sim = Sim(3, 2)
    liar, *others = sim.leads
    sim.start(dead=(liar,))
    sim.run(3_000)
    chosen = replace(CONTENT, ciphertext=Hash32(bytes([9]) * 32))
    forged = propose(sim, liar, tuple(sorted((liar.place, others[0].place))), content=chosen)
    for other in others:
        other.hear(forged)
        assert other.refused[-1].reason is Refusal.UNCONFIRMED
    sim.run()
    assert sim.check(alive=2).content == CONTENT
    name = compute_proposal_id(decode_message(forged))  # type: ignore[arg-type]
    assert not any(isinstance(m, Partial) and m.proposal == name for node in sim.nodes for m in node.sent)


def test_who_differs_does_not_answer() -> None:
    """A member that confirmed something else neither answers nor signs; the others go on."""
    sim = Sim(3, 2)
    odd = sim.leads[2]
    odd.content = replace(CONTENT, ciphertext=Hash32(bytes([9]) * 32))
    sim.start()
    sim.run(60_000)
    opened = sim.get_opened()
    assert len(opened) == 2
    assert len({item.hash for item in opened}) == 1
    assert odd.disk == {}


def test_fewer_than_the_threshold_open_nothing() -> None:
    sim = Sim(5, 3)
    sim.start(dead=tuple(sim.leads[2:]))
    sim.run()
    assert sim.get_opened() == []
    assert all(node.disk == {} for node in sim.nodes)


def test_a_stranger_is_not_heard() -> None:
    """Neither by the pool nor by the round."""
    sim = Sim(3, 2)
    stranger = build_keys(4)[3]
    if stranger.address in sim.terms.members:
        stranger = next(key for key in build_keys(4) if key.address not in sim.terms.members)
    ready = Ready(CEREMONY, TASK, STEP, sim.terms.kind, stranger.address, HASH, Signature(b""))
    ready = sign_message(stranger, CHAIN, ready)
    node = sim.nodes[0]
    node.start()
    node.hear(encode_message(ready))
    assert node.round is not None
    assert node.round.tally.ready == {}
    assert len(node.pool) == 0
    refused = node.round.on_message(sim.now, ready).refused
    assert refused is not None
    assert refused.reason is Refusal.STRANGER


def test_parts_are_of_one_proposal_of_one_attempt() -> None:
    """Replayed to another step or attempt, for a proposal never seen, by who is not asked, out of shape or
    range: each refused by name, and nothing is kept."""
    sim = Sim(3, 2)
    lead, second, third = sim.leads
    node = third
    node.start()
    node.check()
    assert node.round is not None
    subset = tuple(sorted((lead.place, second.place)))
    data = propose(sim, lead, subset)
    good = ((1, 2),)
    unseen = decode_message(answer(sim, second, data, good))
    assert isinstance(unseen, Partial)

    def refuse(partial: Partial) -> Refusal | None:
        assert node.round is not None
        refused = node.round.on_message(sim.now, partial).refused
        return None if refused is None else refused.reason

    assert refuse(replace(unseen, values=((1,),))) is Refusal.UNKNOWN_PROPOSAL
    node.hear(data)
    assert refuse(replace(unseen, step=STEP + 1)) is Refusal.OTHER_OPENING
    assert refuse(replace(unseen, attempt=2)) is Refusal.ATTEMPT
    assert refuse(replace(unseen, member=third.key.address)) is Refusal.NOT_IN_SUBSET
    assert refuse(replace(unseen, values=((1,),))) is Refusal.SHAPE
    assert refuse(replace(unseen, values=((1, 2), (3, 4)))) is Refusal.SHAPE
    assert refuse(replace(unseen, values=((1, PRIMES[1]),))) is Refusal.RESIDUE
    [candidate] = node.round.tally.candidates.values()
    assert candidate.parts == {}
    assert refuse(unseen) is None
    assert list(candidate.parts) == [second.place]
    assert refuse(unseen) is Refusal.KNOWN
    assert refuse(replace(unseen, values=((1, 3),))) is Refusal.EQUIVOCATION
    assert [item.fault for item in node.round.tally.evidence.values()] == [Fault.TWO_PARTS]


def test_two_answers_of_one_attempt_are_evidence() -> None:
    sim = Sim(3, 2)
    lead, second, third = sim.leads
    third.start()
    third.check()
    assert third.round is not None
    for leader, other in ((lead, second), (second, second)):
        places = tuple(sorted({other.place, lead.place}))
        data = propose(sim, leader, places)
        third.hear(data)
        third.hear(answer(sim, second, data, ((1, 2),)))
    [evidence] = third.round.tally.evidence.values()
    assert (evidence.fault, evidence.member) == (Fault.TWO_ANSWERS, second.key.address)
    assert third.refused[-1].reason is Refusal.EQUIVOCATION


def test_different_parts_to_different_members_are_not_signed() -> None:
    """A liar in the subset sends each other member another plausible part: before anybody signs, relays have
    shown both. Attempt 2 is without it."""
    sim = Sim(5, 3, 1)
    liar = sim.leads[1]
    sim.start(ordered=True)
    changed = False

    def cut(sender: Node, receiver: Node, data: bytes) -> bool:
        nonlocal changed
        message = decode_message(data)
        if changed or sender is not liar or not isinstance(message, Partial):
            return False
        if message.member != liar.key.address:
            return False
        changed = True
        moved = tuple((value + 5) % prime for value, prime in zip(message.values[0], PRIMES, strict=True))
        sim.at(20, receiver.hear, sim.sign(liar, replace(message, values=(moved,))))
        return True

    sim.cut = cut
    sim.run()
    opened = sim.check(alive=5)
    assert opened.attempt == 2
    assert {item.fault for item in sim.get_evidence()} == {Fault.TWO_PARTS}


def test_late_parts_complete_what_was_closed() -> None:
    """2 of 3, two dead in turn: nothing is tried a third time, and who comes back is heard."""
    sim = Sim(3, 2)
    _, second, third = sim.leads
    second.crash = lambda stage, effects: stage == "stored" and holds(effects, Answered)
    sim.start(dead=(third,))
    sim.run(60_000)
    assert sim.get_opened() == []
    second.crash = None
    second.start()
    sim.at(10, second.check)
    sim.run()
    assert sim.check(alive=2).attempt == 1


def test_cosignatures_are_checked_and_two_contents_named() -> None:
    sim = Sim(3, 2)
    node, other = sim.nodes[0], sim.nodes[1]
    node.start()
    node.check()
    assert node.round is not None
    forged = Cosign(
        CEREMONY, TASK, STEP, sim.terms.kind, 1, other.key.address, HASH, Signature(bytes(64)), Signature(b"")
    )
    node.hear(sim.sign(other, forged))
    assert node.refused[-1].reason is Refusal.COSIGNATURE
    for number in (1, 2):
        content = Hash32(bytes([number]) * 32)
        signature = other.key.sign("opening", CHAIN + content)
        effects = node.round.on_message(sim.now, replace(forged, content=content, cosignature=signature))
        assert effects.refused is None
    [evidence] = node.round.tally.evidence.values()
    assert evidence.fault is Fault.TWO_CONTENTS


def test_thresholds_of_half_are_refused() -> None:
    """Two subsets without a common member could open, and sign, something else each."""
    members = build_terms(4, 3).members
    with pytest.raises(TermsError, match="more than half"):
        Terms(CHAIN, CEREMONY, TASK, STEP, build_terms(3, 2).kind, members, 2, (PRIMES,), WAITS)


def test_the_toy_opens_what_it_should() -> None:
    sim = Sim(3, 2)
    sim.start()
    sim.run()
    assert 0 < abs(sim.check(alive=3).numbers[0] - MESSAGE) <= 2 * NOISE
