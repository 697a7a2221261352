"""Shares of one key dealt anew: they open the same, and fit none of those before."""

from pathlib import Path

import numpy as np
import pytest

from consensus import ceremonies
from he.multiparty.modular import add, compute_lagrange, multiply
from he.multiparty.sharing import KeyShare
from tests.he.ceremony import SMALL, Ceremony, Renewed
from tests.he.test_ceremony import check_keys
from workloads import ceremony_rounds
from workloads.base import WorkloadError
from workloads.ceremony import SKIPPED, RefusedError
from workloads.ceremony_folder import forget_folder
from workloads.ceremony_rounds import reshare
from workloads.ceremony_share import load_member_keys, load_share
from workloads.sealed import PLAIN, FolderKeys, SealingKey, draw_key

NAME = bytes([7]) * 32


def build(
    tmp_path: Path, came_from: tuple[int | None, ...], threshold: int, key: SealingKey | None
) -> Renewed:
    """Of a committee of 2 of 3, or of 3 of 5 if somebody comes from there."""
    old = (3, 2) if max(place or 0 for place in came_from) < 3 else (5, 3)
    before = Ceremony(tmp_path / "old", SMALL, *old, key=key)
    before.finish()
    return Renewed(
        tmp_path / "new", SMALL, len(came_from), threshold, NAME, key, old=before, came_from=came_from
    )


def load_all(ceremony: Ceremony) -> list[KeyShare]:
    folders = map(ceremony.get_folder, range(ceremony.members))
    return [load_share(folder, PLAIN, allow_insecure=True)[0] for folder in folders]


def put_together(shares: list[KeyShare]) -> bytes:
    """The key's first row, as anybody with so many shares has it."""
    prime, points = shares[0].params.primes[0], [1 + share.place for share in shares]
    total = np.zeros(shares[0].params.ring, dtype=np.uint64)
    for share in shares:
        row = multiply(share.residues[0], compute_lagrange(points, 1 + share.place, prime), prime)
        total = add(total, row, prime)
    return total.tobytes()


@pytest.mark.parametrize(
    ("came_from", "threshold"),
    [
        ((0, 1, 2), 2),
        ((2, 0, None), 2),
        ((1, None, None, 0, 2), 3),
        ((4, 0, 3), 2),
        ((0, 2), 2),
    ],
    ids=["the same", "one is replaced", "two more", "two leave", "one leaves"],
)
@pytest.mark.parametrize("key", [None, draw_key()], ids=["plain", "sealed"])
def test_the_keys_stay_and_new_shares_open(
    tmp_path: Path, came_from: tuple[int | None, ...], threshold: int, key: SealingKey | None
) -> None:
    after = build(tmp_path, came_from, threshold, key)
    finished = after.finish()
    for name in ("public.key", "relin.keys"):
        before = (after.old.get_folder(0) / name).read_bytes()
        assert {(after.get_folder(place) / name).read_bytes() for place in range(after.members)} == {before}
    check_keys(after, finished, FolderKeys(key, key))


def test_shares_of_two_times_do_not_fit(tmp_path: Path) -> None:
    """Whoever got one share before and another one after has nothing."""
    after = build(tmp_path, (0, 1, 2), 2, None)
    after.finish()
    before, now = load_all(after.old), load_all(after)
    whole = put_together(before[:2])
    assert put_together(now[1:]) == put_together([now[0], now[2]]) == whole
    for old in before:
        for new in now:
            if old.place != new.place:
                assert put_together([old, new]) != whole
    keys = [load_member_keys(c.get_folder(0), PLAIN) for c in (after.old, after)]
    assert keys[0].box != keys[1].box
    assert keys[0].draw != keys[1].draw


def test_a_wrong_dealing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who deals something else changes the key: the known answer is wrong, and the old shares stay."""
    after = build(tmp_path, (0, 1, 2), 2, None)

    def deal_wrong(share: KeyShare, *arguments: object, **names: object) -> object:
        if share.place == 1:
            share.residues[0, 0] ^= 1
        return reshare(share, *arguments, **names)  # type: ignore[arg-type]

    monkeypatch.setattr(ceremony_rounds, "reshare", deal_wrong)
    with pytest.raises(RefusedError, match="known answer is wrong"):
        after.finish()
    forget_folder(after.get_folder(0), failed=True)
    assert put_together(load_all(after.old)[:2]) == put_together(load_all(after.old)[1:])


def test_contributions_repeat_after_a_restart(tmp_path: Path) -> None:
    after = build(tmp_path, (0, 1, None), 2, None)
    after.run_rounds("test")
    made = [path.read_bytes() for row in after.rows for path in row]
    for row in after.rows:
        for path in row:
            path.unlink()
    after.rows.clear()
    after.run_rounds("test")
    assert [path.read_bytes() for row in after.rows for path in row] == made


def test_a_lost_share_is_named(tmp_path: Path) -> None:
    after = build(tmp_path, (0, 1, 2), 2, None)
    after.run_rounds("coins")
    forget_folder(after.old.get_folder(1), failed=True)
    after.rows.extend(((), ()))
    with pytest.raises((WorkloadError, OSError), match="member1"):
        after.run_next()


def test_rounds_are_those_of_the_chain() -> None:
    assert SKIPPED == ceremonies.SKIPPED
