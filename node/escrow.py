"""Archives of the custody's keys, and shares of the key that opens one.

An archive names in clear what it holds and is sealed as a whole, with a passphrase or with a random key that
is shared out. A share carries the digest of its whole set, so that a wrong, mixed or altered one is named
before anything is opened; each share's own digest stands in the archive's header.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from node import shamir
from node.custody_keys import MAX_SECRET_BYTES, PLACES, SECRET_FILE, KeyFolder, build_folder
from node.keystore_files import KeyFileError, read_private_file, read_private_start
from workloads import sealed
from workloads.sealed import SECRET_KIND, SealedHeader, SealError, SealingKey, write_secret

ARCHIVE_KIND = "custody-backup"
ARCHIVE_VERSION = 1
MAX_ARCHIVE_BYTES = 2**31 - 1
"""What the cipher takes in one piece."""
MAX_SHARES = 16
SHARE_VERSION = 1
SET_BYTES = 16
CHECKSUM_BYTES = 4
_SHARE_BYTES = 4 + SET_BYTES + sealed.KEY_BYTES
_GROUP = 5
_ENTRY = re.compile(rf"({'|'.join(PLACES)})/[0-9a-f]{{64}}")


class EscrowError(KeyFileError):
    """An archive or a share can't be used; says which and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The secrets of one task or federation."""

    place: str
    root: str
    secrets: dict[str, bytes] = field(repr=False)
    """In clear, by file name."""

    @property
    def name(self) -> str:
        """As archives name it in clear."""
        return f"{self.place}/{self.root}"


# --- archives ---------------------------------------------------------------------------------


def build_archive(entries: Sequence[Entry], key: SealingKey, name: str = "") -> bytes:
    """The archive's bytes; everything in it is sealed but the entries' names and `name`.

    Raises: EscrowError if there is nothing to keep, or too much.
    """
    if not entries:
        raise EscrowError("there are no custody keys to keep")
    body = msgpack.packb(
        {
            "version": ARCHIVE_VERSION,
            "entries": [{"name": item.name, "secrets": item.secrets} for item in entries],
        }
    )
    if len(body) > MAX_ARCHIVE_BYTES - sealed.TAG_BYTES:
        raise EscrowError("these keys are too many for one archive; name fewer of them")
    return sealed.seal(body, key, ARCHIVE_KIND, name, tuple(item.name for item in entries))


def read_archive_header(path: Path) -> SealedHeader:
    """What an archive says in clear. Raises: KeyFileError."""
    start = read_private_start(path)
    try:
        header = sealed.read_header(start)
    except SealError as error:
        raise EscrowError(f"{path}: {error}") from None
    if header.kind != ARCHIVE_KIND:
        raise EscrowError(f"{path}: holds {header.kind}, not {ARCHIVE_KIND}")
    return header


def open_archive(path: Path, key: SealingKey) -> tuple[Entry, ...]:
    """What an archive holds. Raises: KeyFileError naming the file."""
    data = read_private_file(path, MAX_ARCHIVE_BYTES)
    try:
        header = sealed.read_header(data)
        return decode_entries(sealed.open_sealed(data, key, ARCHIVE_KIND), header.holds)
    except (SealError, EscrowError) as error:
        raise EscrowError(f"{path}: {error}") from None


def decode_entries(body: bytes, holds: tuple[str, ...]) -> tuple[Entry, ...]:
    """The opened archive's entries, which must be those that the header names. Raises: EscrowError."""
    try:
        document = msgpack.unpackb(body, strict_map_key=True, max_bin_len=MAX_SECRET_BYTES)
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise EscrowError("is no archive of keys") from None
    if not isinstance(document, dict) or document.get("version") != ARCHIVE_VERSION:
        raise EscrowError("is an archive of another version; newer software may read it")
    listed = document.get("entries")
    if not isinstance(listed, list):
        raise EscrowError("is no archive of keys")
    entries = tuple(_read_entry(item) for item in listed)
    if tuple(item.name for item in entries) != holds or len(set(holds)) != len(holds):
        raise EscrowError("holds other keys than it names")
    return entries


def _read_entry(item: object) -> Entry:
    name, secrets = (item.get("name"), item.get("secrets")) if isinstance(item, dict) else (None, None)
    if not isinstance(name, str) or not _ENTRY.fullmatch(name) or not isinstance(secrets, dict):
        raise EscrowError("is no archive of keys")
    place, _, root = name.partition("/")
    if set(secrets) != {SECRET_FILE, PLACES[place]}:
        raise EscrowError(f"{name}: does not hold the two secrets of its kind")
    if not all(isinstance(data, bytes) for data in secrets.values()):
        raise EscrowError("is no archive of keys")
    return Entry(place, root, secrets)


def restore(entries: Sequence[Entry], directory: Path, key: SealingKey | None) -> list[KeyFolder]:
    """Write the secrets where the custody looks for them, sealed with `key` if there is one.

    Nothing is overwritten. Raises: KeyFileError, before anything is written, if a folder holds a secret.
    """
    folders = [build_folder(directory, item.place, item.root) for item in entries]
    for folder in folders:
        taken = next((path for path, _ in folder.files if path.exists() or path.is_symlink()), None)
        if taken is not None:
            raise EscrowError(f"{taken} exists already; move it away, or leave this one out")
    for folder, item in zip(folders, entries, strict=True):
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The secret key last, so that a folder with one is complete.
        for path, kind in sorted(folder.files, key=lambda file: file[1] == SECRET_KIND):
            write_secret(path, item.secrets[path.name], key, kind)
    return folders


# --- shares -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """One of `count` shares, of which `threshold` give the key."""

    index: int
    threshold: int
    count: int
    set: bytes
    """Digest of the whole set, the same in each of its shares."""
    value: bytes = field(repr=False)

    @property
    def label(self) -> str:
        """For people."""
        return f"share {self.index} of {self.count} (any {self.threshold}) of set {self.set.hex()[:8]}"


def _compute_share_digest(index: int, value: bytes) -> bytes:
    return hashlib.sha256(b"bmif/escrow-share" + bytes([index]) + value).digest()


def _compute_set_digest(threshold: int, digests: Sequence[bytes]) -> bytes:
    counts = bytes([threshold, len(digests)])
    return hashlib.sha256(b"bmif/escrow-set" + counts + b"".join(digests)).digest()[:SET_BYTES]


def share_out(key: SealingKey, threshold: int, count: int) -> tuple[tuple[Share, ...], str]:
    """Shares of a drawn key, and the archive's `name` that vouches for each of them.

    Raises: EscrowError.
    """
    if not 2 <= threshold <= count <= MAX_SHARES:
        raise EscrowError(f"expected 2 <= --shares <= --of <= {MAX_SHARES}, got {threshold} of {count}")
    values = shamir.split(key.secret, threshold, count)
    digests = [_compute_share_digest(index, value) for index, value in sorted(values.items())]
    digest = _compute_set_digest(threshold, digests)
    shares = tuple(Share(index, threshold, count, digest, value) for index, value in sorted(values.items()))
    return shares, f"escrow {threshold} " + " ".join(item.hex() for item in digests)


def read_vouchers(header: SealedHeader) -> tuple[int, tuple[bytes, ...]]:
    """Threshold and each share's digest, by the archive's own word. Raises: EscrowError."""
    word, *rest = header.name.split(" ")
    try:
        threshold, digests = int(rest[0]), tuple(bytes.fromhex(text) for text in rest[1:])
    except (ValueError, IndexError):
        word, threshold, digests = "", 0, ()
    sound = word == "escrow" and all(len(item) == 32 for item in digests)
    if not sound or not 2 <= threshold <= len(digests) <= MAX_SHARES:
        raise EscrowError("this archive is not one of shares: open it with its passphrase")
    return threshold, digests


def combine(named: Sequence[tuple[str, Share]], header: SealedHeader) -> SealingKey:
    """The archive's key, from shares and where each came from; every one that is given is checked.

    Raises: EscrowError naming what is wrong with which share.
    """
    threshold, digests = read_vouchers(header)
    expected = _compute_set_digest(threshold, digests)
    found: dict[int, bytes] = {}
    origin: dict[int, str] = {}
    for source, share in named:
        if share.set != expected:
            raise EscrowError(
                f"{source}: {share.label} is of another archive; this one's set is {expected.hex()[:8]}"
            )
        if (share.threshold, share.count) != (threshold, len(digests)) or share.index > len(digests):
            raise EscrowError(f"{source}: {share.label} says another number of shares than its set has")
        if _compute_share_digest(share.index, share.value) != digests[share.index - 1]:
            raise EscrowError(f"{source}: {share.label} was altered")
        if share.index in found:
            raise EscrowError(
                f"{source}: the same share as {origin[share.index]}; give {threshold} different ones"
            )
        found[share.index], origin[share.index] = share.value, source
    if len(found) < threshold:
        raise EscrowError(f"{len(found)} shares were given, {threshold} are needed; they say nothing yet")
    return SealingKey(shamir.combine(dict(sorted(found.items())[:threshold])))


def format_share(share: Share) -> str:
    """The share as text to print or type: a few lines for people, then groups of letters and digits."""
    data = bytes([SHARE_VERSION, share.index, share.threshold, share.count]) + share.set + share.value
    text = base64.b32encode(data + _compute_checksum(data)).decode().rstrip("=")
    groups = [text[at : at + _GROUP] for at in range(0, len(text), _GROUP)]
    lines = ["-".join(groups[at : at + 6]) for at in range(0, len(groups), 6)]
    return "\n".join(
        [
            f"# bmif custody keys: {share.label}",
            f"# Any {share.threshold} of them open the archive; fewer say nothing. Keep them apart.",
            *lines,
            "",
        ]
    )


def parse_share(text: str, source: str = "share") -> Share:
    """A share from its text; spaces, dashes, case and lines that begin with `#` do not matter.

    Raises: EscrowError naming `source`.
    """
    lines = (line.strip() for line in text.splitlines())
    letters = re.sub(r"[\s-]", "", "".join(line for line in lines if not line.startswith("#"))).upper()
    try:
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError):
        raise EscrowError(f"{source}: letters A to Z and digits 2 to 7 alone make a share") from None
    if len(data) != _SHARE_BYTES + CHECKSUM_BYTES:
        raise EscrowError(f"{source}: no share has this length; is a line missing?")
    body, checksum = data[:_SHARE_BYTES], data[_SHARE_BYTES:]
    # The last letter has bits that stand for nothing: only one of its readings is a share's.
    if _compute_checksum(body) != checksum or base64.b32encode(data).decode().rstrip("=") != letters:
        raise EscrowError(f"{source}: the checksum does not fit; a letter was mistyped")
    version, index, threshold, count = body[:4]
    if version != SHARE_VERSION:
        raise EscrowError(f"{source}: a share of another version; newer software may read it")
    if not 2 <= threshold <= count <= MAX_SHARES or not 1 <= index <= count:
        raise EscrowError(f"{source}: no share has these numbers")
    return Share(index, threshold, count, body[4 : 4 + SET_BYTES], body[4 + SET_BYTES :])


def _compute_checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"bmif/share-text" + data).digest()[:CHECKSUM_BYTES]
