"""Every file of a ledger deleted, cut short or with bits turned: it is found, named, and mended."""

import hashlib
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from consensus.block import Block
from consensus.codec import decode
from consensus.crypto import CHUNK_BYTES
from consensus.genesis import build_genesis_state
from consensus.gossip_rules import Outcome
from consensus.identifiers import compute_block_hash, compute_chain_id
from consensus.tree import TreeError
from consensus.types import Hash32, Millis
from node.blobs import BlobStore
from node.chain import Chain
from node.cli.common import CliError
from node.cli.ledger_errors import ledger_errors
from node.cli.main import app
from node.clock import ManualClock
from node.genesis import save_genesis
from node.gossip.messages import Kind
from node.handlers import PeerHandlers
from node.keystore import create_account_key
from node.ledger import schema
from node.ledger.chainstore import SIGN_STATE_PREFIX, SIGN_STATE_UNKNOWN, Ledger
from node.ledger.check import check_ledger, inspect_ledger
from node.ledger.damage import EXIT_DAMAGED, is_damage
from node.ledger.level import LevelStore
from node.ledger.mark import MARK_NAME, encode_mark, load_mark
from node.ledger.rebuild import rebuild_ledger
from node.ledger.schema import LedgerDamaged, LedgerError
from node.ledger.store import MemoryStore, StoreError
from node.recomputer import Recomputer
from node.signstate import SignStateStore
from node.work import VerdictBook
from tests.integration.crash_driver import SINK, _advance_to, _open_core, _produce, build_vote
from tests.integration.test_chain import KEYS, build_genesis

SEED = 20260
HEIGHT = 40
NOW = Millis(1_800_000_000_000)
GENESIS = build_genesis(ManualClock())
CHAIN_ID = compute_chain_id(GENESIS)
GENESIS_NODES = dict(build_genesis_state(GENESIS).tree.new_nodes())


@dataclass(frozen=True, slots=True)
class Sound:
    """A ledger of several tables, a log and a manifest, as the process left it; and what it holds."""

    path: Path
    head: Hash32
    root: Hash32
    rows: bytes
    """A hash over all of them."""
    blocks: tuple[bytes, ...]

    def copy(self, directory: Path) -> Path:
        return Path(shutil.copytree(self.path, directory / "ledger"))


def hash_rows(store: LevelStore) -> bytes:
    total = hashlib.sha256()
    for key, value in store.iterate(b""):
        total.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
    return total.digest()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("sound")
    path, numbers = directory / "ledger", random.Random(SEED)
    for top in (HEIGHT // 2, HEIGHT):
        store = LevelStore(path)
        core, clock = _open_core(directory, store, 0)
        ledger = core.chain.ledger
        for height in range(ledger.height + 1, top + 1):
            _produce(core, clock, height)
            SignStateStore(ledger, KEYS[0].address).record(build_vote(height))
            ledger.put_record(b"opening/%04d" % height, numbers.randbytes(3000))
        if top < HEIGHT:
            # Tables that overlap are merged into ones of 2 MB. What comes after stays in the log.
            for first in range(4):
                bulk = {b"weights/%02d" % at: numbers.randbytes(100_000) for at in range(first, 60, 4)}
                ledger.put_records(bulk)
                store.compact()
        head, root, rows = core.chain.head_hash, core.chain.head_state.root, hash_rows(store)
        found = [ledger.get_block(block) for block in ledger.get_hashes(1, HEIGHT)]
        store.close()
    names = sorted(entry.name for entry in path.iterdir())
    assert sum(name.endswith(".ldb") for name in names) >= 3, names
    assert any(name.endswith(".log") and (path / name).stat().st_size > 20_000 for name in names), names
    return Sound(path, head, root, rows, tuple(block for block in found if block is not None))


# --- damage ------------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def delete(path: Path) -> None:
    path.unlink()


def cut(share: float) -> Damage:
    def do(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: min(len(data) - 1, int(len(data) * share))])

    return do


def turn(seed: int, bits: int = 1) -> Damage:
    def do(path: Path) -> None:
        data = bytearray(path.read_bytes())
        numbers = random.Random(seed)
        for _ in range(bits if data else 0):
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        path.write_bytes(data)

    return do


QUICK: dict[str, Damage] = {
    "deleted": delete,
    "cut in half": cut(0.5),
    "a bit": turn(SEED),
    "50 bits": turn(SEED, 50),
}
SLOW: dict[str, Damage] = {
    "emptied": cut(0),
    "cut at .1": cut(0.1),
    "cut at .9": cut(0.9),
    "a byte short": cut(1),
    **{f"bit {seed}": turn(seed) for seed in range(16)},
    **{f"20 bits {seed}": turn(seed, 20) for seed in range(4)},
}
HARMLESS = {"LOCK", "LOG", "LOG.old"}


def _get_files(sound: Sound) -> list[str]:
    return sorted(
        entry.name for entry in sound.path.iterdir() if entry.stat().st_size or entry.name in HARMLESS
    )


def _choose(files: Sequence[str]) -> list[str]:
    """One of each kind, and of tables the first and the last."""
    kinds = {name.split("-")[0].rpartition(".")[2]: name for name in files}
    return sorted({*kinds.values(), next(name for name in files if name.endswith(".ldb"))})


def _get_signed(ledger: Ledger) -> int:
    """The highest target that the voter knows it signed."""
    return SignStateStore(ledger, KEYS[0].address).signed.target


def _open(path: Path) -> tuple[LevelStore, Chain]:
    store = LevelStore(path)
    try:
        return store, Chain(GENESIS, store, ManualClock(), VerdictBook())
    except BaseException:
        store.close()
        raise


def _prove_whole(path: Path, sound: Sound) -> None:
    """Nothing was lost: every row is as it was."""
    store, chain = _open(path)
    assert (chain.head_hash, chain.head_state.root) == (sound.head, sound.root)
    assert hash_rows(store) == sound.rows
    assert check_ledger(chain.ledger, deep=True) == []
    store.close()


def _get_refusal(path: Path) -> str | None:
    """What a start says, or None if it starts."""
    try:
        store, _ = _open(path)
    except (StoreError, LedgerError, TreeError) as error:
        if not is_damage(error):
            raise
        return str(error)
    store.close()
    return None


def _mend(path: Path, sound: Sound) -> Ledger:
    """Rebuild, then the chain from a peer."""
    before = sorted(entry.name for entry in path.iterdir())
    rebuilt = rebuild_ledger(path, CHAIN_ID, GENESIS_NODES, NOW)
    assert rebuilt.aside is not None
    assert set(before) - HARMLESS <= {entry.name for entry in rebuilt.aside.iterdir()}
    store = LevelStore(path)
    core, clock = _open_core(path.parent, store, 0)
    _advance_to(clock, NOW)
    for block in sound.blocks:
        core.take_block(block)
    assert (core.chain.head_hash, core.chain.head_state.root) == (sound.head, sound.root)
    assert check_ledger(core.chain.ledger, deep=True) == []
    ledger = core.chain.ledger
    is_unknown = ledger.get_record(SIGN_STATE_UNKNOWN) is not None
    assert is_unknown is not rebuilt.is_sign_state_known
    assert is_unknown or _get_signed(ledger) == HEIGHT
    store.close()
    return ledger


def _try(sound: Sound, directory: Path, name: str, damage: Damage, mends: bool) -> str:
    path = sound.copy(directory)
    damage(path / name)
    inspection = inspect_ledger(path, CHAIN_ID, deep=True)
    said = [str(found) for found in inspection.damages]
    # Only the check reads everything, so a start may see less; what refuses a start, the check must see.
    refusal = _get_refusal(Path(shutil.copytree(path, directory / "started")))
    if not said:
        assert refusal is None
        _prove_whole(Path(shutil.copytree(path, directory / "whole")), sound)
        return "harmless"
    assert all(found.remedy for found in inspection.damages)
    assert str(directory / "ledger.trial") not in " ".join(said)
    is_named = any(name.rstrip("0123456789") in text for text in said) or "its last" in said[0]
    assert is_named, said
    if mends:
        _mend(path, sound)
    return "refused" if refusal else "found by the check"


def _check_outcomes(outcomes: dict[tuple[str, str], str]) -> None:
    for (name, damage), outcome in outcomes.items():
        if name in HARMLESS:
            assert outcome == "harmless", (name, damage)
        elif damage in ("deleted", "emptied", "cut in half", "cut at .1", "cut at .9"):
            assert outcome != "harmless", (name, damage)
        if outcome == "harmless" and name not in HARMLESS:
            print(f"harmless: {damage} of {name}")


def test_a_sound_ledger_is_found_sound(sound: Sound, tmp_path: Path) -> None:
    path = sound.copy(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name != "LOCK"}
    inspection = inspect_ledger(path, CHAIN_ID, deep=True)
    assert inspection.damages == []
    assert (inspection.height, inspection.head) == (HEIGHT, sound.head)
    assert inspection.counts["blocks"] == HEIGHT
    assert before == {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name != "LOCK"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger"]
    _prove_whole(path, sound)


@pytest.mark.parametrize("damage", QUICK)
def test_a_damaged_file(sound: Sound, tmp_path: Path, damage: str) -> None:
    outcomes = {
        (name, damage): _try(sound, tmp_path / name, name, QUICK[damage], mends=damage != "50 bits")
        for name in _choose(_get_files(sound))
    }
    _check_outcomes(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*QUICK, *SLOW])
def test_every_file_damaged_in_every_way(sound: Sound, tmp_path: Path, damage: str) -> None:
    do = {**QUICK, **SLOW}[damage]
    outcomes = {
        (name, damage): _try(sound, tmp_path / name, name, do, mends=True) for name in _get_files(sound)
    }
    _check_outcomes(outcomes)


# --- torn writes -------------------------------------------------------------------------------


def _get_log(path: Path) -> Path:
    return max(path.glob("*.log"))


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
def test_a_log_torn_by_a_power_failure_is_the_ledger_as_it_was(
    sound: Sound, tmp_path: Path, share: float
) -> None:
    """What was not synced may be lost, never half of a batch; the commit mark is as old as what is left."""
    _tear(sound, tmp_path, int(_get_log(sound.path).stat().st_size * share))


@pytest.mark.slow
def test_a_log_torn_anywhere(sound: Sound, tmp_path: Path) -> None:
    """At the borders of LevelDB's blocks and of its records, one before and after, and at random."""
    data = _get_log(sound.path).read_bytes()
    numbers = random.Random(SEED)
    offsets = {
        *range(0, len(data), 32_768),
        *_find_records(data),
        *(numbers.randrange(len(data)) for _ in range(50)),
    }
    nearby = {offset + more for offset in offsets for more in (-1, 0, 1, 6, 7, 8)}
    chosen = sorted(offset for offset in nearby if 0 <= offset <= len(data))
    for offset in numbers.sample(chosen, min(250, len(chosen))):
        _tear(sound, tmp_path / str(offset), offset)


def _find_records(data: bytes) -> list[int]:
    """Where LevelDB's log records begin: checksum (4), length (2), type (1), content."""
    found, at = [], 0
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        found.append(at)
        at += 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    return found


def _tear(sound: Sound, directory: Path, offset: int) -> None:
    directory.mkdir(exist_ok=True)
    path = sound.copy(directory)
    log = _get_log(path)
    is_torn = offset < log.stat().st_size
    log.write_bytes(log.read_bytes()[:offset])
    marked = load_mark(path)
    assert marked is not None
    if is_torn:
        # With the mark of the end, the loss shows.
        refusal = _get_refusal(Path(shutil.copytree(path, directory / "marked")))
        assert refusal is not None
        assert "has lost its last" in refusal
    (path / MARK_NAME).write_bytes(encode_mark(0))
    store, chain = _open(path)
    assert check_ledger(chain.ledger, deep=True) == []
    ledger = chain.ledger
    # Block, sign-state and opening of a height are three batches: some prefix of them is there.
    height = ledger.height
    signed = _get_signed(ledger)
    opened = sum(1 for _ in ledger.iterate_records(b"opening/"))
    assert (height - signed, signed - opened) in ((0, 0), (1, 0), (0, 1))
    assert height  # of what is in tables
    assert ledger.head == compute_block_hash(decode(Block, sound.blocks[height - 1]).header)
    core, clock = _open_core(path.parent, store, 0)
    assert core.chain.head_state.get_account(SINK).balance == height * (height + 1) // 2
    _advance_to(clock, NOW)
    for block in sound.blocks[height:]:
        core.take_block(block)
    assert (core.chain.head_hash, core.chain.head_state.root) == (sound.head, sound.root)
    store.close()


# --- what a rebuild keeps ----------------------------------------------------------------------


def test_a_rebuild_keeps_records_and_knows_the_sign_state_where_nothing_else_is_damaged(
    sound: Sound, tmp_path: Path
) -> None:
    path = sound.copy(tmp_path)
    store = LevelStore(path)
    store.write_batch([], [schema.block_key(sound.head)])
    store.close()
    assert _get_refusal(path) is not None
    rebuilt = rebuild_ledger(path, CHAIN_ID, GENESIS_NODES, NOW)
    assert rebuilt.is_sign_state_known
    assert rebuilt.aside is not None
    assert rebuilt.aside.name == "ledger.damaged-20270115T080000Z"
    store, chain = _open(path)
    assert chain.head.height == 0
    assert _get_signed(chain.ledger) == HEIGHT
    assert len(list(chain.ledger.iterate_records(b"opening/"))) == HEIGHT
    store.close()


def test_a_rebuild_in_doubt_leaves_the_voter_in_its_safe_mode(sound: Sound, tmp_path: Path) -> None:
    path = sound.copy(tmp_path)
    log = _get_log(path)
    log.write_bytes(log.read_bytes()[:-1])
    rebuilt = rebuild_ledger(path, CHAIN_ID, GENESIS_NODES, NOW)
    assert not rebuilt.is_sign_state_known
    store, chain = _open(path)
    reason = chain.ledger.get_record(SIGN_STATE_UNKNOWN)
    assert reason is not None
    assert b"lost its last" in reason
    assert _get_signed(chain.ledger) >= HEIGHT - 1
    assert len(list(chain.ledger.iterate_records(b"opening/"))) >= HEIGHT - 1
    store.close()
    # Once in doubt, it stays so through the next rebuild.
    assert not rebuild_ledger(path, CHAIN_ID, GENESIS_NODES, NOW).is_sign_state_known
    assert (tmp_path / "ledger.damaged-20270115T080000Z-2").is_dir()


def test_a_sign_state_of_another_hand_is_named_and_dropped(sound: Sound, tmp_path: Path) -> None:
    path = sound.copy(tmp_path)
    store = LevelStore(path)
    store.write_batch([(schema.record_key(SIGN_STATE_PREFIX + KEYS[0].address), b"\x93\x01")])
    store.close()
    (damage,) = inspect_ledger(path, CHAIN_ID).damages
    assert (damage.table, damage.what[:14]) == ("records", "the sign-state")
    assert not rebuild_ledger(path, CHAIN_ID, GENESIS_NODES, NOW).is_sign_state_known
    store, chain = _open(path)
    assert _get_signed(chain.ledger) == 0
    assert chain.ledger.get_record(SIGN_STATE_UNKNOWN) is not None
    store.close()


# --- while a node runs --------------------------------------------------------------------------


async def test_damage_found_by_a_running_node_ends_it(sound: Sound, tmp_path: Path) -> None:
    """Blocks of peers need a state that is not there any more."""
    path = sound.copy(tmp_path)
    store = LevelStore(path)
    core, clock = _open_core(tmp_path, store, 0)
    _advance_to(clock, NOW)
    other, peer = _open_core(tmp_path / "peer", MemoryStore(), 1)
    for block in sound.blocks:
        other.take_block(block)
    _advance_to(peer, other.chain.head.time)
    _produce(other, peer, HEIGHT + 1)
    block, block_hash = other.chain.ledger.get_block(other.chain.head_hash), other.chain.head_hash
    assert block is not None
    handlers = PeerHandlers(core, Recomputer(core))
    # All but the root: a start would see that.
    for key, _ in list(store.iterate(schema.NODE_PREFIX)):
        if key[1:] != sound.root:
            store.write_batch([], [key])
    core.chain._states.clear()
    assert await handlers.on_object(Kind.BLOCK, block_hash, block, "peer") is Outcome.IGNORE
    with pytest.raises(TreeError) as caught:
        await core.wait_failed()
    assert is_damage(caught.value)
    assert core.chain.head_hash == sound.head
    store.close()


async def test_a_read_for_the_api_that_meets_damage_ends_the_node(sound: Sound, tmp_path: Path) -> None:
    store = LevelStore(sound.copy(tmp_path))
    core, _ = _open_core(tmp_path, store, 0)
    handlers = PeerHandlers(core, Recomputer(core))
    block = core.chain.get_hash_by_height(3)
    assert block is not None
    store.write_batch([(schema.block_key(block), b"\xc1")])
    with pytest.raises(LedgerDamaged):
        core.chain.get_block(block)
    with pytest.raises(LedgerDamaged, match=block.hex()):
        await core.wait_failed()
    assert handlers.get_status().head == sound.head
    store.close()


@pytest.mark.parametrize("nested", [False, True])
def test_a_command_that_meets_damage_says_what_to_do(
    nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    error: Exception = TreeError("node 77 is missing")
    if nested:
        error = ExceptionGroup("services", [ValueError("another"), ExceptionGroup("peers", [error])])
    with pytest.raises(typer.Exit) as ended, ledger_errors():
        raise error
    assert ended.value.exit_code == EXIT_DAMAGED
    said = capsys.readouterr().err
    assert "the ledger is damaged: node 77 is missing" in said
    assert "bmif ledger rebuild" in said
    with pytest.raises(CliError, match="in use"), ledger_errors():
        raise StoreError("the database is in use by another process")
    with pytest.raises(ValueError, match="unrelated"), ledger_errors():
        raise ValueError("unrelated")


# --- the commands ------------------------------------------------------------------------------


@pytest.fixture
def config(sound: Sound, tmp_path: Path) -> Path:
    """Settings of a node that has the ledger."""
    (tmp_path / "data").mkdir()
    sound.copy(tmp_path / "data")
    save_genesis(tmp_path / "genesis.json", GENESIS)
    settings = {
        "name": "node1", "data_dir": "data", "genesis": "genesis.json", "account_key": "account.key",
        "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
    }  # fmt: skip
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def _bmif(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_a_node_with_a_damaged_ledger_does_not_start(config: Path) -> None:
    create_account_key(config.parent / "account.key")
    next((config.parent / "data" / "ledger").glob("MANIFEST-*")).unlink()
    code, text = _bmif("run", "--config", str(config))
    assert code == EXIT_DAMAGED, text
    assert "MANIFEST" in text
    assert "bmif ledger rebuild" in text


def test_the_check_of_blobs_makes_them_come_again(config: Path) -> None:
    blobs = BlobStore(config.parent / "data" / "blobs")
    ref = blobs.put_bytes(bytes(CHUNK_BYTES) + b"tail")
    path = blobs.get_path(ref.root)
    assert path is not None
    turn(SEED)(path)
    code, text = _bmif("ledger", "check", "--blobs", "--config", str(config))
    assert code == EXIT_DAMAGED, text
    assert f"blob {ref.root.hex()}: chunks 0 are damaged" in text
    assert _bmif("ledger", "check", "--blobs", "--config", str(config))[0] == 0
    assert not BlobStore(config.parent / "data" / "blobs").has(ref.root)


def test_the_commands_on_a_ledger(config: Path) -> None:
    ledger, given = config.parent / "data" / "ledger", ("--config", str(config))
    code, text = _bmif("ledger", "check", "--deep", *given)
    assert (code, "0 problems" in text) == (0, True), text
    code, text = _bmif("ledger", "rebuild", *given)
    assert (code, "nothing to rebuild" in text) == (1, True), text
    table = min(ledger.glob("*.ldb"))
    turn(SEED, 5)(table)
    code, text = _bmif("ledger", "check", *given)
    assert (code, f"{table} is damaged" in text, "bmif ledger rebuild" in text) == (
        EXIT_DAMAGED,
        True,
        True,
    ), text
    code, text = _bmif("ledger", "rebuild", *given)
    assert (code, "ledger.damaged-" in text) == (0, True), text
    code, text = _bmif("ledger", "check", "--json", *given)
    assert (code, '"problems": []' in text) == (0, True), text
