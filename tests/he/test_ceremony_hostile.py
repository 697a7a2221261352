"""Key ceremonies in folders: what is refused of other members, and what nobody finds on a disk."""

import dataclasses
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from he.multiparty import keygen, sharing
from he.multiparty.keygen import RelinSecond, RelinSum
from he.multiparty.member import MemberSecrets
from he.multiparty.sharing import Piece
from tests.he.ceremony import SMALL, Ceremony, leave_parts
from workloads import ceremony_rounds
from workloads.base import WorkloadError
from workloads.ceremony import (
    CONTRIBUTION_HEADER_BYTES,
    ROUNDS,
    RefusedError,
    RoundJob,
    forget,
    run_finish,
    run_round,
)
from workloads.ceremony_share import load_share
from workloads.sealed import (
    FolderKeys,
    SealingKey,
    draw_key,
    is_sealed,
)

# --- what others send -------------------------------------------------------------------------


def replace(job: RoundJob, number: int, place: int, path: Path) -> RoundJob:
    rows = [list(row) for row in job.contributions]
    rows[number][place] = path
    return dataclasses.replace(job, contributions=tuple(tuple(row) for row in rows))


@pytest.fixture(scope="module")
def finished_rounds(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    """All rounds over, of three."""
    ceremony = Ceremony(tmp_path_factory.mktemp("ceremony"), SMALL, 3, 2)
    ceremony.run_rounds("test")
    return ceremony


@pytest.fixture
def ceremony(finished_rounds: Ceremony, tmp_path: Path) -> Ceremony:
    """A copy whose member 0 can be led astray."""
    shutil.copytree(finished_rounds.directory, tmp_path / "all")
    copied = Ceremony(tmp_path / "all", SMALL, 3, 2)
    copied.rows = [
        tuple(copied.get_folder(place) / path.name for place, path in enumerate(row))
        for row in finished_rounds.rows
    ]
    return copied


def rewind(ceremony: Ceremony, number: int, place: int = 0) -> None:
    """A member's folder as it was after `number` rounds."""
    for round_name in ROUNDS[number:]:
        for ending in ("blob", "secret"):
            (ceremony.get_folder(place) / f"{round_name}.{ending}").unlink(missing_ok=True)


def run_next(ceremony: Ceremony, number: int, path: Path, place: int = 2) -> None:
    """Member 0's step after round `number`, in which `place` sent what is in `path`."""
    job = replace(ceremony.get_job(0, number + 1), number, place, path)
    if number + 1 == len(ROUNDS):
        run_finish(job)
    else:
        rewind(ceremony, number + 1)
        run_round(job)


@pytest.mark.parametrize("round_name", ROUNDS)
def test_a_contribution_of_another_kind_is_refused(
    ceremony: Ceremony, round_name: str, tmp_path: Path
) -> None:
    number = ROUNDS.index(round_name)
    right = ceremony.rows[number][2].read_bytes()
    other = Ceremony(tmp_path / "other", SMALL, 3, 2, name=bytes(32))
    other.run_rounds(round_name)
    wrong = {
        "truncated": right[:-1],
        "longer": right + b"\0",
        "empty": b"",
        "another place's": ceremony.rows[number][1].read_bytes(),
        "another round's": ceremony.rows[number - 1][2].read_bytes(),
        "another ceremony's": other.rows[number][2].read_bytes(),
        "another history's": right[:80] + bytes(32) + right[112:],
        "of another threshold": right[:42] + b"\3" + right[43:],
    }
    path = tmp_path / "wrong"
    message = rf"^{round_name}: the contribution of place 2: "
    for data in wrong.values():
        path.write_bytes(data)
        with pytest.raises(RefusedError, match=message):
            run_next(ceremony, number, path)
        assert not (ceremony.get_folder(0) / "secret.key").exists()
    with pytest.raises(OSError, match="none"):
        run_next(ceremony, number, tmp_path / "none")


def forge(ceremony: Ceremony, number: int, offset: int, data: bytes, path: Path, place: int = 2) -> Path:
    """The contribution of `place` with other bytes at `offset` of its body."""
    forged = bytearray(ceremony.rows[number][place].read_bytes())
    start = CONTRIBUTION_HEADER_BYTES + offset
    forged[start : start + len(data)] = data
    path.write_bytes(forged)
    return path


LARGE = b"\xff" * 7 + b"\x7f"
POLYNOMIAL = 3 * 2048 * 8


@pytest.mark.parametrize(
    ("round_name", "offset", "data", "message"),
    [
        ("coins", 32, bytes(32), "small order"),
        ("coins", 32, b"\1" + bytes(31), "small order"),
        ("coins", 32, (2**255 - 20).to_bytes(32, "little"), "small order"),
        ("coins", 32, (2**255 - 10).to_bytes(32, "little"), "not below"),
        ("coins", 32, b"\x09" + bytes(30) + b"\x80", "not below"),
        ("shares", 0, b"X", "header"),
        ("shares", 64, LARGE, "residue"),
        ("shares", 64, bytes(POLYNOMIAL), "transparent"),
        ("shares", 64 + POLYNOMIAL, b"X", "header"),
        ("shares", 128 + POLYNOMIAL, LARGE, "residue"),
        ("shares", 128 + POLYNOMIAL, bytes(POLYNOMIAL), "transparent"),
        ("relin", 10, b"X", "header"),
        ("relin", 64, LARGE, "residue"),
        ("relin", 64, bytes(POLYNOMIAL), "transparent"),
        ("secrets", 0, b"X" * 12, "piece for place 0 does not open"),
        ("secrets", 40, b"X" * 12, "piece for place 0 does not open"),
        ("test", 0, b"X", "header"),
        ("test", 64, LARGE, "residue"),
    ],
)
def test_a_malformed_body_is_refused(
    ceremony: Ceremony, tmp_path: Path, round_name: str, offset: int, data: bytes, message: str
) -> None:
    number = ROUNDS.index(round_name)
    path = forge(ceremony, number, offset, data, tmp_path / "forged")
    with pytest.raises(RefusedError, match=rf"^{round_name}: the contribution of place 2: .*{message}"):
        run_next(ceremony, number, path)


@pytest.mark.parametrize("round_name", ROUNDS[:-1])
def test_no_secret_meets_a_contribution_that_was_not_checked(
    ceremony: Ceremony, tmp_path: Path, round_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every member's, before the first use of anything that this one drew."""
    number = ROUNDS.index(round_name)
    data = LARGE if round_name in ("shares", "relin") else bytes(32)
    offset = {"coins": 32, "secrets": 40}.get(round_name, 64)
    path = forge(ceremony, number, offset, data, tmp_path / "forged")
    for name in ("lift_secret", "lift_mask", "mark_answered"):
        monkeypatch.setattr(MemberSecrets, name, use)
    for name in ("share_out", "open_partially", "build_relin_second", "build_public_share"):
        monkeypatch.setattr(ceremony_rounds, name, use)
    with pytest.raises(RefusedError):
        run_next(ceremony, number, path)


def use(*_: object) -> None:
    raise AssertionError("something secret is used")


def test_a_round_is_answered_once(ceremony: Ceremony, tmp_path: Path) -> None:
    """Other contributions of the round before, well-formed ones, get no second answer: not with the file of
    the answer there, nor without."""
    for number, offset in ((3, 0), (2, 64), (1, 64), (0, 0)):
        path = forge(ceremony, number, offset, b"\1" * 7, tmp_path / "other")
        job = replace(ceremony.get_job(0, number + 1), number, 2, path)
        for _ in range(2):
            with pytest.raises(WorkloadError, match="answers once"):
                run_round(job)
            (ceremony.get_folder(0) / f"{ROUNDS[number + 1]}.blob").unlink(missing_ok=True)


def test_an_aggregate_must_hold_the_own_contribution(ceremony: Ceremony, tmp_path: Path) -> None:
    for number, offset in ((3, 0), (2, 64), (1, 64), (0, 0)):
        path = forge(ceremony, number, offset, b"\1" * 7, tmp_path / "other", place=0)
        message = f"{ROUNDS[number]}: the contribution of place 0: is not what this member made"
        with pytest.raises(WorkloadError, match=message):
            run_next(ceremony, number, path, place=0)


def test_a_wrong_piece_shows_in_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Member 3 deals one residue wrongly to member 4: the subset that reaches it is named, nobody is."""

    def deal(own: MemberSecrets, threshold: int, members: int, levels: int) -> tuple[Piece, ...]:
        pieces = sharing.share_out(own, threshold, members, levels)
        if own.place == 3:
            pieces[4].residues[1, 7] ^= np.uint64(1)
        return pieces

    monkeypatch.setattr(ceremony_rounds, "share_out", deal)
    ceremony = Ceremony(tmp_path, SMALL, 5, 3)
    ceremony.run_rounds("test")
    for place in range(5):
        with pytest.raises(RefusedError, match=r"by the places 2-3-4; .* whose can't be told"):
            run_finish(ceremony.get_job(place))
        assert not (ceremony.get_folder(place) / "secret.key").exists()
        assert not (ceremony.get_folder(place) / "noise.key").exists()


def test_a_wrong_opening_or_relinearisation_shows_in_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(own: MemberSecrets, total: RelinSum) -> RelinSecond:
        found = keygen.build_relin_second(own, total)
        if own.place == 1:
            found.residues[0, 0, :] = 1
        return found

    monkeypatch.setattr(ceremony_rounds, "build_relin_second", answer)
    ceremony = Ceremony(tmp_path, SMALL, 3, 2)
    ceremony.run_rounds("test")
    with pytest.raises(RefusedError, match="by the places 0-1, 1-2; "):
        run_finish(ceremony.get_job(0))


def test_a_forged_opening_is_noticed(ceremony: Ceremony, tmp_path: Path) -> None:
    path = forge(ceremony, 4, 64, b"\1" * 7, tmp_path / "forged")
    with pytest.raises(RefusedError, match="by the places 1-2; "):
        run_next(ceremony, 4, path)
    with pytest.raises(WorkloadError, match="4 of 5 rounds"):
        run_finish(ceremony.get_job(0, 4))
    with pytest.raises(WorkloadError, match="to be finished"):
        run_round(ceremony.get_job(0, 5))


def test_a_folder_is_of_one_member_and_ceremony(ceremony: Ceremony) -> None:
    job = ceremony.get_job(0, 0)
    for terms in (
        dataclasses.replace(job.terms, place=1),
        dataclasses.replace(job.terms, ceremony=bytes(32)),
        dataclasses.replace(job.terms, threshold=3),
    ):
        with pytest.raises(WorkloadError, match="another ceremony"):
            run_round(dataclasses.replace(job, terms=terms))
    with pytest.raises(WorkloadError, match="not what this member made"):
        run_round(dataclasses.replace(ceremony.get_job(0, 2), folder=ceremony.directory / "new"))
    with pytest.raises(WorkloadError, match="of each of 3 members"):
        run_round(dataclasses.replace(job, contributions=(ceremony.rows[0][:2],)))


# --- secrecy on disk --------------------------------------------------------------------------


def find_secrets(folder: Path) -> list[bytes]:
    """What is secret of one member's rounds, in clear: its key, secret, mask, own piece, share."""
    ring = 2048
    coins, shares, pieces, share = (
        (folder / f"{name}.secret").read_bytes() for name in ("coins", "shares", "secrets", "test")
    )
    member = shares[64 : 64 + 2 * ring]
    found = [coins[:32], coins[32:64], member[:ring], member[ring:], pieces[64:4000], share[144:4000]]
    return [item[:64] for item in found]


def read_all(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_no_folder_has_what_is_another_members(finished_rounds: Ceremony, tmp_path: Path) -> None:
    for place in range(3):
        for other in range(3):
            found = [
                item in read_all(finished_rounds.get_folder(other))
                for item in find_secrets(finished_rounds.get_folder(place))
            ]
            assert found == [place == other] * 6


@pytest.mark.parametrize("key", [None, draw_key()], ids=["plain", "sealed"])
def test_files_are_their_owners_alone(tmp_path: Path, key: SealingKey | None) -> None:
    old = os.umask(0)
    try:
        ceremony = Ceremony(tmp_path, SMALL, 2, 2, key=key)
        ceremony.run_rounds("test")
        check_modes(ceremony.get_folder(0), key)
        ceremony.finish()
        check_modes(ceremony.get_folder(0), key)
    finally:
        os.umask(old)


def check_modes(folder: Path, key: SealingKey | None) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        is_secret = path.suffix == ".secret" or path.name in ("secret.key", "noise.key")
        assert is_sealed(path.read_bytes()) == (is_secret and key is not None)


def test_nothing_of_the_ceremony_is_left(ceremony: Ceremony) -> None:
    """Of the share alone, and of the pair secrets in it, bytes are found after the end."""
    folder = ceremony.get_folder(0)
    leave_parts(folder)
    *drawn, share = find_secrets(folder)
    opened = {path: path.open("rb") for path in folder.glob("*.secret")}
    run_finish(ceremony.get_job(0))
    rest = read_all(folder)
    assert not any(item in rest for item in drawn)
    assert share in rest
    for file in opened.values():
        # Not only their names are gone.
        assert not any(file.read())
        file.close()
    assert {path.name for path in folder.iterdir()} == KEPT | {f"{name}.blob" for name in ROUNDS}
    forget(folder)
    assert {path.name for path in folder.iterdir()} == KEPT
    forget(folder, failed=True)
    assert not folder.exists()


KEPT = {"public.key", "relin.keys", "noise.key", "secret.key"}


def test_a_failed_ceremony_is_forgotten(ceremony: Ceremony) -> None:
    folder = ceremony.get_folder(0)
    (folder / "noise.key").write_bytes(bytes(32))
    leave_parts(folder)
    forget(folder)
    assert not folder.exists()
    forget(folder)
    (ceremony.get_folder(1) / "notes").write_text("mine")
    forget(ceremony.get_folder(1))
    assert [path.name for path in ceremony.get_folder(1).iterdir()] == ["notes"]


def test_two_attempts_share_nothing(finished_rounds: Ceremony, tmp_path: Path) -> None:
    """Also of one name: nothing is derived from anything that stays."""
    again = Ceremony(tmp_path, SMALL, 3, 2, name=finished_rounds.name)
    again.run_rounds("test")
    for row, other in zip(finished_rounds.rows, again.rows, strict=True):
        for first, second in zip(row, other, strict=True):
            words = [
                {data[at : at + 8] for at in range(CONTRIBUTION_HEADER_BYTES, len(data), 8)}
                for data in (first.read_bytes(), second.read_bytes())
            ]
            headers = {word for word in words[0] & words[1] if word in first.read_bytes()[:300]}
            assert len((words[0] & words[1]) - headers) < 12
    for place in range(3):
        old, new = (set(find_secrets(item.get_folder(place))) for item in (finished_rounds, again))
        assert not old & new


def test_a_damaged_share_is_refused(ceremony: Ceremony, tmp_path: Path) -> None:
    ceremony.finish()
    path = ceremony.get_folder(0) / "secret.key"
    data = path.read_bytes()
    for wrong in (
        b"",
        data[:-1],
        data + b"\0",
        b"X" + data[1:],
        data[:8] + b"\xff" + data[9:],
        data[:42] + b"\3" + data[43:],
        data[:100] + b"X" + data[101:],
        data[:144] + LARGE + data[152:],
    ):
        path.write_bytes(wrong)
        with pytest.raises(WorkloadError, match=r"secret\.key: "):
            load_share(ceremony.get_folder(0), FolderKeys(), allow_insecure=True)
    path.write_bytes(data)
    load_share(ceremony.get_folder(0), FolderKeys(), allow_insecure=True)
    with pytest.raises(WorkloadError, match="preset"):
        load_share(ceremony.get_folder(0), FolderKeys())
