"""Targets: what a node, its tools and its operators read from files, the ledger's own records among them."""

import base64
import contextlib
import datetime
import inspect
import io
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_type_hints

import msgpack
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from PIL import Image
from pydantic import ValidationError

from consensus.crypto import hash_domain
from consensus.genesis import GenesisError as UnusableGenesis
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.tree import TreeError, _decode_node
from consensus.types import Hash32
from fusion_model.importers.png import ImportRefusedError, import_manifest, import_pair
from node import escrow
from node.api.schemas import TrainedModel
from node.config import ConfigError, NodeConfig
from node.genesis import GenesisError, load_genesis, save_genesis
from node.keystore import KeyFileError, load_account_key
from node.ledger import schema
from node.ledger.mark import MARK_NAME, encode_mark, load_mark
from node.ledger.store import StoreDamaged
from node.processes import PID_FILE, get_pid
from node.testnet import MANIFEST, Profile, Testnet, TestnetError
from node.tls import TlsError, TlsFiles, load_identity
from tests.fuzz import scenes
from tests.fuzz.target import ROOT, Form, Target, require
from workloads import sealed


@cache
def _make_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bmif-fuzz-")


def get_folder() -> Path:
    """Where inputs are laid for what reads files; gone with the process."""
    return Path(_make_folder().name)


def write(name: str, data: bytes) -> Path:
    path = get_folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# --- the ledger -------------------------------------------------------------------------------


def build_record_run(
    decode: Callable[[bytes], object], encode: Callable[..., bytes] | None
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """Every `decode_*` of the ledger's schema: LedgerError alone leaves it, and what it accepts has
        the promised types and encodes to bytes that decode to the same."""
        value = decode(data)
        check_types(value)
        if encode is not None:
            parts = value if isinstance(value, tuple) else (value,)
            require(decode(encode(*parts)) == value, "does not return from its own bytes")

    return run


def check_types(value: object) -> None:
    """Every field of a record is what its annotation says: a list that decoded as a hash hurts later."""
    if isinstance(value, tuple):
        for item in value:
            check_types(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name, hint in get_type_hints(type(value)).items():
            field = getattr(value, name)
            if hint is Hash32:
                require(isinstance(field, bytes) and len(field) == 32, f"{name} is {field!r:.60}")
            elif hint is int:
                require(type(field) is int, f"{name} is {field!r:.60}")
            else:
                check_types(field)
    else:
        require(type(value) in (int, bytes), f"{value!r:.60} in a record")


ROW_GROWTH = 10_000
"""msgpack's own decoder believes what nested arrays claim; but rows are the node's own."""


def build_record_targets() -> list[Target]:
    """One for each decoder of the schema; those of keys get keys as the schema makes them."""
    seeds = build_record_seeds()
    targets = []
    for name, decode in inspect.getmembers(schema, inspect.isfunction):
        if name.startswith("decode_") and decode.__module__ == schema.__name__:
            short = name.removeprefix("decode_")
            encode = getattr(schema, f"encode_{short}", None)
            run = build_record_run(decode, encode)
            targets.append(
                Target(
                    f"ledger.{short}",
                    run,
                    (schema.LedgerError,),
                    lambda short=short: seeds.get(short, [bytes(44)]),  # type: ignore[misc]
                    Form.MSGPACK,
                    2048,
                    ROW_GROWTH,
                )
            )
    return targets


def build_record_seeds() -> dict[str, list[bytes]]:
    one, two = Hash32(bytes([1]) * 32), Hash32(bytes([2]) * 32)
    work = (schema.WORK_POSITION, two)
    return {
        "version": [schema.encode_version(schema.SCHEMA_VERSION)],
        "meta": [schema.encode_meta(schema.Meta(one, two, 3))],
        "index": [
            schema.encode_index(schema.BlockIndex(7, one, (one, two), ((0, one), work))),
            schema.encode_index(schema.BlockIndex(1, one, (), ())),
        ],
        "location": [schema.encode_location(one, 5)],
        "header_key": [schema.header_key(9, one)],
        "height_key": [schema.height_key(9)],
        "subject_key": [schema.subject_key(one, 9, 1)],
    }


def run_mark(data: bytes) -> None:
    """`load_mark`: StoreDamaged alone leaves it; a number, or none where the file is empty."""
    commits = load_mark(write(f"mark/{MARK_NAME}", data).parent)
    require(commits is None if not data else encode_mark(commits or 0) == data, "took a damaged mark")


def run_node(data: bytes) -> None:
    """`_decode_node`: TreeError alone leaves it, for bytes of another hash and for what is no node."""
    node = _decode_node(hash_domain("tree", data), data)
    require(node.encode() == data, "encodes to other bytes")
    try:
        _decode_node(hash_domain("tree", data + b"\x00"), data)
    except TreeError:
        return
    require(False, "took bytes of another hash")


# --- genesis, settings ------------------------------------------------------------------------


def run_genesis(data: bytes) -> None:
    """`load_genesis`: GenesisError alone leaves it; what it accepts founds a chain or is refused by
    consensus with its reason, and is the same when saved and loaded again."""
    genesis = load_genesis(write("genesis.json", data))
    save_genesis(get_folder() / "again.json", genesis)
    require(load_genesis(get_folder() / "again.json") == genesis, "another genesis after saving")
    state = build_genesis_state(genesis)
    require(build_genesis_header(genesis, state).state_root == state.root, "another state root")


def build_geneses() -> Iterable[bytes]:
    path = get_folder() / "seed.json"
    genesis = scenes.get_scenes()[0].world.genesis
    save_genesis(path, replace(genesis, accounts=genesis.accounts[:4]))  # the fifth has no organisation
    yield path.read_bytes()


def run_config(data: bytes) -> None:
    """`NodeConfig.load`: ConfigError alone leaves it, with remedies; paths come out absolute."""
    try:
        config = NodeConfig.load(write("node.yaml", data))
    except ConfigError as error:
        require(all(problem.remedy for problem in error.problems), "a problem without remedy")
        require(bool(error.problems), "no problem named")
        raise
    paths = (config.data_dir, config.genesis, config.account_key, config.tls.key, config.token_file)
    require(all(path.is_absolute() for path in paths), "a relative path")
    config.check_files()


def run_profile(data: bytes) -> None:
    """`Profile.load`: ConfigError alone leaves it."""
    Profile.load(write("profile.yaml", data))


def run_testnet(data: bytes) -> None:
    """`Testnet.load`: TestnetError alone leaves it; what it accepts can be listed."""
    testnet = Testnet.load(write(MANIFEST, data).parent)
    require(len(testnet.select(())) == len(testnet.nodes), "lists other nodes")


def run_pid(data: bytes) -> None:
    """`get_pid`: nothing leaves it; a file that tells of no process of ours is as none."""
    require(get_pid(write(PID_FILE, data).parent) is None, "a process that is not ours")


def run_model(data: bytes) -> None:
    """A trained model's file: ValidationError, or the same model when it is written again."""
    model = TrainedModel.model_validate_json(data)
    require(TrainedModel.model_validate_json(model.model_dump_json()) == model, "does not return from JSON")


def build_models() -> Iterable[bytes]:
    sample = {
        name: "00" * 32 if field.annotation is str else 1 for name, field in TrainedModel.model_fields.items()
    }
    sample |= {"weights": (1, -2, 3), "specification": "98", "kind": "fusion-training"}
    yield TrainedModel.model_construct(**sample).model_dump_json(warnings=False).encode()  # type: ignore[arg-type]


def read_configs(*names: str) -> Callable[[], Iterable[bytes]]:
    return lambda: [(ROOT / "configs" / name).read_bytes() for name in names]


MANIFEST_SEED = (
    b'{"name": "testnet", "nodes": [{"name": "node1", "organisation": "hospital-1", "roles": ["miner"], '
    b'"host": "127.0.0.1", "api_port": 8100, "operator_port": 8101, "peer_port": 8102, "address": "00"}]}'
)


# --- keys -------------------------------------------------------------------------------------


def run_account_key(data: bytes) -> None:
    """`load_account_key`: KeyFileError alone leaves it, and quotes nothing of the file."""
    path = write("account.pem", data)
    path.chmod(0o600)
    try:
        key = load_account_key(path)
    except KeyFileError as error:
        lines = [line for line in data.split(b"\n") if len(line) > 20]
        require(not any(line.decode("latin-1") in str(error) for line in lines), "quotes the file")
        raise
    require(len(key.sign("test", b"")) == 64 and len(key.address) == 32, "no Ed25519 key")


def build_account_keys() -> Iterable[bytes]:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    yield key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for algorithm in ("2b6571", "2b656e", "2a8648ce3d0201"):  # Ed448, X25519, an elliptic curve
        oid = bytes.fromhex(algorithm)
        body = (
            b"\x02\x01\x00\x30" + bytes([len(oid) + 2, 6, len(oid)]) + oid + b"\x04\x22\x04\x20" + bytes(32)
        )
        inner = base64.encodebytes(b"\x30" + bytes([len(body)]) + body)
        yield b"-----BEGIN PRIVATE KEY-----\n" + inner + b"-----END PRIVATE KEY-----\n"


SEALING_KEY = sealed.SealingKey(bytes(32), bytes(16), sealed.Cost(16, 1, 1))


def run_sealed(data: bytes) -> None:
    """A sealed file: SealError alone leaves it, and what its header says costs no more than the bounds."""
    header = sealed.read_header(data)
    header.cost.check()
    sealed.open_sealed(data, SEALING_KEY, header.kind)


def build_sealed() -> Iterable[bytes]:
    """With a nonce that never changes, so that the bytes do not either."""
    key = SEALING_KEY
    header = sealed.SealedHeader("account-key", "00" * 32, bytes(12), key.salt, key.cost, ("one", "two"))
    line = sealed._encode_header(header)
    yield line + ChaCha20Poly1305(key.secret).encrypt(header.nonce, b"secret", line)


def run_archive(data: bytes) -> None:
    """An archive of keys and what it says in clear: EscrowError alone leaves both."""
    with contextlib.suppress(escrow.EscrowError):
        name = data[:2000].decode("latin-1")
        escrow.read_vouchers(sealed.SealedHeader("custody-backup", name, bytes(12), b"", sealed.DEFAULT_COST))
    entries = escrow.decode_entries(data, (f"custody/{'ab' * 32}",))
    require(len(entries) == 1 and set(entries[0].secrets) == {"secret.key", "noise.key"}, "other secrets")


def build_archives() -> Iterable[bytes]:
    secrets = {"secret.key": b"secret", "noise.key": b"noise"}
    yield msgpack.packb({"version": 1, "entries": [{"name": f"custody/{'ab' * 32}", "secrets": secrets}]})


def run_share(data: bytes) -> None:
    """A share's text: EscrowError alone leaves it; what is accepted gives the same text again."""
    share = escrow.parse_share(data.decode("utf-8", "replace"))
    require(escrow.parse_share(escrow.format_share(share)) == share, "does not return from its text")


def build_shares() -> Iterable[bytes]:
    yield escrow.format_share(escrow.Share(2, 3, 5, bytes(range(16)), bytes(range(32)))).encode()


def run_certificate(data: bytes) -> None:
    """`load_identity`: TlsError alone leaves it."""
    path = write("tls.pem", data)
    identity = load_identity(TlsFiles(path, path, path))
    require(isinstance(identity.node_id, str) and isinstance(identity.organisation, str), "names no text")


def build_certificates() -> Iterable[bytes]:
    """Of a key and a time that never change, so that the bytes do not either."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    start = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    attributes = [(NameOID.COMMON_NAME, "node1"), (NameOID.ORGANIZATION_NAME, "hospital-1")]
    for count in (2, 0):
        name = x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes[:count]])
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start.replace(year=2035))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        yield builder.sign(key, None).public_bytes(Encoding.PEM)


# --- images -----------------------------------------------------------------------------------


def run_png(data: bytes) -> None:
    """`import_pair`: ImportRefusedError alone leaves it; else finite luminance in [0, 1]."""
    path = write("image.png", data)
    pair = import_pair(path, path, "pair", 1)
    require(bool(np.isfinite(pair.first).all()), "not finite")
    require(float(pair.first.min(initial=0)) >= 0 and float(pair.first.max(initial=1)) <= 1, "out of [0, 1]")


def build_images() -> Iterable[bytes]:
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    images = [Image.fromarray(ramp), Image.fromarray(np.stack([ramp] * 3, axis=-1))]
    images += [Image.fromarray(np.stack([ramp, ramp, 255 - ramp], axis=-1)), images[0].convert("P")]
    images += [images[0].convert("1"), images[0].convert("I;16"), images[1].convert("RGBA")]
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=number % 2 == 1)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG", save_all=True, append_images=[images[0]], dpi=(72, 72))
    yield buffer.getvalue()


def run_pairs(data: bytes) -> None:
    """`import_manifest`: ImportRefusedError alone leaves it, and no file outside its folder is read."""
    folder = get_folder() / "pairs"
    if not folder.exists():
        write("pairs/a.png", next(iter(build_images())))
    pairs = import_manifest(write("pairs/pairs.csv", data))
    require(bool(pairs), "no pair")


PAIRS = b"id,modality,file_a,file_b,patient\np1,ct,a.png,a.png,1\np2,pet,a.png,./a.png,case7\n"


def build_targets() -> list[Target]:
    yaml = {"form": Form.TEXT, "max_bytes": 4096, "growth": 2000, "base": 2**23, "frames": 400}
    config, damaged = (ConfigError,), (TreeError,)
    genesis = (GenesisError, UnusableGenesis)
    return [
        *build_record_targets(),
        Target("ledger.mark", run_mark, (StoreDamaged,), lambda: [encode_mark(0), encode_mark(77), b""]),
        Target("ledger.node", run_node, damaged, scenes.build_nodes),
        Target("file.genesis", run_genesis, genesis, build_geneses, Form.JSON, 4096, 1000, 2**22, 400, 2),
        Target("file.config", run_config, config, read_configs("node.yaml"), effort=2, **yaml),  # type: ignore[arg-type]
        Target("file.profile", run_profile, config, read_configs("minimal.yaml"), **yaml),  # type: ignore[arg-type]
        Target("file.testnet", run_testnet, (TestnetError,), lambda: [MANIFEST_SEED], Form.JSON, frames=200),
        Target("file.pid", run_pid, (), lambda: [b'{"pid": 1, "started": "7"}'], Form.JSON, 256, frames=200),
        Target("file.model", run_model, (ValidationError,), build_models, Form.JSON, 4096, 1000),
        Target("file.account_key", run_account_key, (KeyFileError,), build_account_keys, Form.PEM, 1024),
        Target("file.sealed", run_sealed, (sealed.SealError,), build_sealed, Form.JSON, 2048, frames=200),
        Target(
            "file.archive", run_archive, (escrow.EscrowError,), build_archives, Form.MSGPACK, 2048, ROW_GROWTH
        ),
        Target("file.share", run_share, (escrow.EscrowError,), build_shares, Form.TEXT, 1024),
        Target("file.certificate", run_certificate, (TlsError,), build_certificates, Form.PEM, 2048),
        Target(
            "image.png", run_png, (ImportRefusedError,), build_images, Form.PNG, 2048, base=2**28, effort=3
        ),
        Target("image.pairs", run_pairs, (ImportRefusedError,), lambda: [PAIRS], Form.TEXT, 1024, base=2**22),
    ]
