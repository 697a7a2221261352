"""Key ceremonies in folders: what members end with, and what no accident can do to them."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from he.context import PublicContext
from he.keys import PublicKey, RelinKeys
from he.multiparty import formats, sharing
from he.multiparty.known_answer import list_test_subsets
from he.multiparty.noise import draw_noise
from he.multiparty.opening import Question, combine_openings, open_partially
from he.params import get_params
from he.plan import Form
from tests.he.ceremony import SMALL, Ceremony, leave_parts
from workloads import ceremony_folder
from workloads.base import WorkloadError
from workloads.ceremony import (
    CONTRIBUTION_HEADER_BYTES,
    MAX_MEMBERS,
    ROUNDS,
    SHARED_LEVELS,
    CeremonyTerms,
    FinishedCeremony,
    RoundJob,
    find_seal,
    get_contribution_bytes,
    get_opening_bytes,
    run_finish,
    run_round,
)
from workloads.ceremony_blobs import list_own_subsets
from workloads.ceremony_folder import CeremonyFolder
from workloads.ceremony_share import load_member_keys, load_share
from workloads.sealed import (
    Cost,
    FolderKeys,
    SealError,
    SealingKey,
    derive_key,
    draw_key,
    unlock,
    write_secret,
)


def load_keys(ceremony: Ceremony, finished: FinishedCeremony) -> tuple[PublicKey, RelinKeys]:
    params = get_params(ceremony.preset, allow_insecure=True)
    return (
        PublicKey.decode(params, finished.public_key),
        RelinKeys.decode(params, finished.relin_keys),
    )


def check_keys(ceremony: Ceremony, finished: list[FinishedCeremony], keys: FolderKeys) -> None:
    """One pair of keys, under which the library multiplies and any threshold of members opens the sum."""
    assert len({item.public_key.read_bytes() for item in finished}) == 1
    assert len({item.relin_keys.read_bytes() for item in finished}) == 1
    params = get_params(ceremony.preset, allow_insecure=True)
    engine = PublicContext(params, *load_keys(ceremony, finished[0])).engine
    values = np.linspace(-1, 1, params.slots)
    product = engine.square(engine.encrypt(values, Form(params.levels, Fraction(2**30))))
    engine.relinearize_inplace(product)
    engine.drop_inplace(product, 2)
    words = np.frombuffer(engine.save(product), dtype="<u8").astype(np.uint64)
    question = Question(params, (words.reshape(2, 2, params.ring),))
    held = [
        load_share(ceremony.get_folder(place), keys, allow_insecure=True) for place in range(ceremony.members)
    ]
    for place, item in enumerate(finished):
        own = load_member_keys(ceremony.get_folder(place), keys)
        assert own.box_public == item.box_key
        assert len({own.box, own.draw}) == 2
        assert own.box.hex() not in repr(own)
    assert len({item.box_key for item in finished}) == ceremony.members
    expected = float((values**2).sum()) / params.slots * 2**60
    for subset in list_test_subsets(ceremony.threshold, ceremony.members):
        parts = [
            open_partially(
                *held[place], subset, question, draw_noise(bytes(32), b"%d" % place, [2**40]), b"step 1"
            )
            for place in subset
        ]
        assert combine_openings(question, parts)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("members", "threshold"), [(3, 2), (3, 3), (5, 3)])
@pytest.mark.parametrize("key", [None, draw_key()], ids=["plain", "sealed"])
def test_members_end_with_one_key_and_open_together(
    tmp_path: Path, members: int, threshold: int, key: SealingKey | None
) -> None:
    ceremony = Ceremony(tmp_path, SMALL, members, threshold, key=key)
    check_keys(ceremony, ceremony.finish(), FolderKeys(key, key))


@pytest.mark.slow
def test_a_ceremony_of_full_size(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path, "ckks-16384-60x5", 3, 2, key=draw_key())
    check_keys(ceremony, ceremony.finish(), FolderKeys(ceremony.key, ceremony.key))


@pytest.mark.parametrize(("preset", "members", "threshold"), [(SMALL, 5, 3), ("test-4096-60x5", 2, 2)])
def test_lengths_are_predicted(tmp_path: Path, preset: str, members: int, threshold: int) -> None:
    ceremony = Ceremony(tmp_path, preset, members, threshold)
    ceremony.run_rounds("test")
    for round_name, row in zip(ROUNDS, ceremony.rows, strict=True):
        for place, path in enumerate(row):
            length = get_contribution_bytes(
                preset, members, threshold, place, round_name, allow_insecure=True
            )
            assert path.stat().st_size == length == ceremony.get_terms(0).get_bytes_of(place, round_name)


def test_numbers_are_those_of_the_cryptography() -> None:
    assert (MAX_MEMBERS, SHARED_LEVELS) == (formats.MAX_MEMBERS, sharing.SHARED_LEVELS)
    for members in range(2, 8):
        for threshold in range(2, members + 1):
            for place in range(members):
                terms = CeremonyTerms(bytes(32), SMALL, members, threshold, place, True)
                body = terms.get_bytes("test") - CONTRIBUTION_HEADER_BYTES
                assert body == len(list_own_subsets(terms, place)) * get_opening_bytes()


def test_terms_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for ceremony, members, threshold, place in (
        (bytes(31), 3, 2, 0),
        (bytes(32), 3, 1, 0),
        (bytes(32), 3, 4, 0),
        (bytes(32), 65, 2, 0),
        (bytes(32), 3, 2, 3),
        (bytes(32), 3, 2, -1),
    ):
        with pytest.raises(WorkloadError):
            CeremonyTerms(ceremony, SMALL, members, threshold, place)
    with pytest.raises(WorkloadError, match="preset"):
        run_round(RoundJob(CeremonyTerms(bytes(32), SMALL, 3, 2, 0), tmp_path / "member", ()))
    with pytest.raises(WorkloadError, match="preset"):
        get_contribution_bytes("none", 3, 2, 0, "coins")
    with pytest.raises(WorkloadError, match="no round"):
        get_contribution_bytes("ckks-16384-60x5", 3, 2, 0, "coin")
    assert not (tmp_path / "member").exists()


# --- restarts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, draw_key()], ids=["plain", "sealed"])
def test_a_contribution_is_the_same_after_any_crash(tmp_path: Path, key: SealingKey | None) -> None:
    ceremony = Ceremony(tmp_path, SMALL, 3, 2, key=key)
    for number, round_name in enumerate(ROUNDS):
        ceremony.run_next()
        folder, job = ceremony.get_folder(1), ceremony.get_job(1, number)
        path, made = ceremony.rows[number][1], ceremony.rows[number][1].read_bytes()
        stored = (folder / f"{round_name}.secret").read_bytes()
        assert run_round(job, key) == path
        path.unlink()
        leave_parts(folder)
        assert run_round(job, key).read_bytes() == made
        path.write_bytes(made[:-1])
        assert run_round(job, key).read_bytes() == made
        assert (folder / f"{round_name}.secret").read_bytes() == stored
        assert not list(folder.glob(".*"))
    # And all of them again, at the end.
    for number in range(len(ROUNDS)):
        (ceremony.get_folder(2) / f"{ROUNDS[number]}.blob").unlink()
    for number, row in enumerate(ceremony.rows):
        assert run_round(ceremony.get_job(2, number), key) == row[2]
    check_keys(ceremony, ceremony.finish(), FolderKeys(key, key))


class Killed(Exception):
    """The process ends here."""


class Disk:
    """Takes `room` writes; in the next one the process is killed."""

    def __init__(self) -> None:
        self.room = 0
        self.written: dict[str, bytes] = {}

    def write(self, path: Path, data: bytes, key: SealingKey | None, kind: str) -> None:
        if len(self.written) == self.room:
            path.with_name(f".{path.name}.1.part").write_bytes(data[: len(data) // 2])
            raise Killed
        self.written[path.name] = data
        write_secret(path, data, key, kind)


@pytest.mark.parametrize("round_name", ROUNDS)
def test_secrets_are_on_disk_before_the_contribution(
    tmp_path: Path, round_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each write in turn: what a finished write promised is what the next process sends."""
    ceremony, number = Ceremony(tmp_path, SMALL, 2, 2), ROUNDS.index(round_name)
    while len(ceremony.rows) < number:
        ceremony.run_next()
    job, disk = ceremony.get_job(0), Disk()
    monkeypatch.setattr(ceremony_folder, "write_secret", disk.write)
    for disk.room in range(2):
        with pytest.raises(Killed):
            run_round(job)
    assert list(disk.written) == [f"{round_name}.secret"]
    disk.room = 2
    assert disk.written[f"{round_name}.secret"].endswith(run_round(job).read_bytes())
    assert list(disk.written) == [f"{round_name}.secret", f"{round_name}.blob"]


def test_a_finish_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceremony = Ceremony(tmp_path, SMALL, 3, 2)
    finished, disk = ceremony.finish(), Disk()
    again = Ceremony(tmp_path / "again", SMALL, 3, 2)
    again.run_rounds("test")
    monkeypatch.setattr(ceremony_folder, "write_secret", disk.write)
    for disk.room in range(4):
        disk.written.clear()
        with pytest.raises(Killed):
            run_finish(again.get_job(0))
        assert not (again.get_folder(0) / "secret.key").exists()
    disk.room = 4
    with monkeypatch.context() as patch:
        patch.setattr(CeremonyFolder, "erase_secrets", kill)
        disk.written.clear()
        with pytest.raises(Killed):
            run_finish(again.get_job(0))
    assert list(disk.written) == ["public.key", "relin.keys", "noise.key", "secret.key"]
    secret = (again.get_folder(0) / "secret.key").read_bytes()
    monkeypatch.undo()
    check_keys(again, again.finish(), FolderKeys())
    assert (again.get_folder(0) / "secret.key").read_bytes() == secret
    assert not list(again.get_folder(0).glob("*.secret"))
    # Nothing is made anew where a ceremony is over.
    assert run_finish(ceremony.get_job(0)) == finished[0]
    (ceremony.get_folder(0) / "coins.blob").unlink()
    with pytest.raises(WorkloadError, match="finished"):
        run_round(ceremony.get_job(0, 0))


def kill(folder: CeremonyFolder) -> None:
    raise Killed


def test_sealed_secrets_need_their_key(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path, SMALL, 2, 2, key=derive_key(b"twelve characters", cost=Cost(16, 8, 1)))
    assert find_seal(ceremony.get_folder(0)) is None
    ceremony.run_next()
    header = find_seal(ceremony.get_folder(0))
    assert header is not None
    assert unlock(header, b"twelve characters") == ceremony.key
    ceremony.run_next()
    for key in (None, draw_key()):
        with pytest.raises(SealError):
            run_round(ceremony.get_job(0), key)


def test_two_worker_processes_make_one_contribution(tmp_path: Path) -> None:
    """A job that is sent again while the first still runs: the second waits, and finds it made."""
    ceremony = Ceremony(tmp_path, SMALL, 2, 2, key=draw_key())
    ceremony.run_next()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run_round, ceremony.get_job(0), ceremony.key) for _ in range(4)]
        paths = {job.result(timeout=120) for job in jobs}
    made = next(iter(paths)).read_bytes()
    assert len(paths) == 1
    next(iter(paths)).unlink()
    assert run_round(ceremony.get_job(0), ceremony.key).read_bytes() == made
