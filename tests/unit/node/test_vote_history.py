"""Comparing votes: every pair that convicts is found while both are remembered, and memory is bounded."""

import random

from consensus.crypto import SigningKey, hash_domain
from consensus.types import Height
from consensus.vote import Checkpoint, Vote, is_slashable, sign_vote
from node.evidence import MIN_PER_VALIDATOR, VoteHistory

CHAIN = hash_domain("test", b"chain")
KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]


def build_vote(source: int, target: int, key: SigningKey = KEYS[0], name: str = "") -> Vote:
    def build_checkpoint(height: int) -> Checkpoint:
        return Checkpoint(Height(height), hash_domain("test", f"{name}{height}".encode()))

    return sign_vote(key, CHAIN, build_checkpoint(source), build_checkpoint(target))


def test_honest_votes_convict_nobody() -> None:
    history = VoteHistory()
    for height in range(1, 600):
        assert history.add(build_vote(height - 1, height)) is None
        assert history.add(build_vote(height - 1, height)) is None
    assert len(history) == 256


def test_every_kind_of_pair_is_found() -> None:
    pairs = [
        (build_vote(1, 2), build_vote(1, 2, name="other")),
        (build_vote(1, 3), build_vote(2, 3)),
        (build_vote(1, 9), build_vote(3, 4)),
        (build_vote(3, 4), build_vote(1, 9)),
    ]
    for first, second in pairs:
        history = VoteHistory()
        assert history.add(first) is None
        assert history.add(build_vote(1, 2, KEYS[1], "other")) is None
        assert history.add(second) == first


def test_random_votes_against_comparing_all() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    history, seen = VoteHistory(), list[Vote]()
    for _ in range(300):
        source = chance.randrange(20)
        vote = build_vote(source, source + chance.randrange(1, 9), chance.choice(KEYS), chance.choice("ab"))
        partner = history.add(vote)
        expected = vote not in seen and any(is_slashable(vote, known) for known in seen)
        assert (partner is not None) == expected
        assert partner is None or is_slashable(partner, vote)
        seen.append(vote)


def test_what_reaches_furthest_is_kept_whatever_its_age() -> None:
    history = VoteHistory(max_per_validator=MIN_PER_VALIDATOR)
    far = build_vote(0, 1_000)
    history.add(far)
    for height in range(1, 100):
        history.add(build_vote(0, height))
    assert history.add(build_vote(500, 501)) == far


def test_many_validators_share_the_room() -> None:
    history = VoteHistory(max_votes=64, max_per_validator=64)
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(1, 20)]
    for height in range(1, 20):
        for key in keys:
            history.add(build_vote(height - 1, height, key))
    assert len(history) <= 64
