"""Seeded mutations of inputs: of bytes, and of the structures that the bytes stand for.

Random changes of bytes nearly always end at the first length or tag that no longer fits. The mutations here
change the value instead and write it canonically again, so that they reach the rules behind the decoder.
"""

import base64
import binascii
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence

import msgpack

from tests.fuzz.target import Form

INTEGERS = (
    *(0, 1, -1, 2, 3, 31, 32, 63, 64, 127, 128, 255, 256, -32, -33, -128, -129, 65_535, 65_536),
    *(2**31 - 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
SIZES = (0, 1, 8, 31, 32, 33, 63, 64, 65, 100)
TEXTS = ("", "a", "\x00", "per-patch", "box", "complete", "ä€😀", "x" * 65, "block", "../../x", "1e999", "٣")
ODD_JSON = (
    *(b"NaN", b"Infinity", b"-0", b"1e400", b"1.0", b'"\\ud800"', b'"\\u0000"', b"null", b"true", b"{}"),
    *(b"1" * 400, b"[" * 50, b'{"a":' * 50, b'"' + b"00" * 32 + b'"', b'"' + "é".encode() * 3 + b'"'),
)
ODD_TEXT = (
    *(
        b"\n",
        b": ",
        b"- ",
        b"[",
        b"{",
        b"&a ",
        b"*a",
        b"!!int ",
        b"!!timestamp x",
        b"2020-13-45",
        b"!!bool z",
    ),
    *(b"!!float x", b"!!python/object:os.system ", b"? ", b"| ", b"<<: ", b'"', b"\x00", b"\xff", b"=", b"&"),
    *(b"%", b"0x", b"1_0", b"1:60", b",", b"\r", b"id: ", b"data: ", b"event: ", b"~", b"+", b"\xef\xbb\xbf"),
)

Tree = object
Path = tuple[object, ...]


def mutate(data: bytes, form: Form, draw: random.Random, pool: Sequence[bytes], max_bytes: int) -> bytes:
    """Another input of at most `max_bytes`; `pool` are inputs to take pieces from."""
    mutated = data
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change = _MUTATIONS[form] if draw.random() < 0.7 else _mutate_bytes
        mutated = change(mutated, draw, pool)
    return mutated[:max_bytes]


# --- bytes ------------------------------------------------------------------------------------


def _mutate_bytes(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 1, 2, 4, 8, 32, 256)))
    match draw.randrange(7):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + draw.randbytes(draw.choice((1, 1, 2, 4, 8))) + data[at:]
        case 3:
            return data[:end] + data[at:end] * draw.choice((1, 2, 16)) + data[end:]
        case 4:
            return data[:at] + draw.choice((b"\x00", b"\xff", b"\x80", b"\x7f")) * (end - at) + data[end:]
        case 5 if pool:
            other = draw.choice(pool)
            start = draw.randrange(len(other) + 1)
            return data[:at] + other[start : start + draw.choice((4, 32, 4096))] + data[end:]
        case _:
            number = draw.choice(INTEGERS) % 2**64
            return data[:at] + number.to_bytes(8, draw.choice(("big", "little"))) + data[at + 8 :]


def _mutate_words(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """One aligned 64-bit word, little-endian: a residue of a ciphertext."""
    if len(data) < 8 or draw.random() < 0.2:
        return _mutate_bytes(data, draw, pool)
    at = 8 * draw.randrange(len(data) // 8)
    word = int.from_bytes(data[at : at + 8], "little")
    word = draw.choice((0, word + 1, word - 1, 2**60, 2**64 - 1, 1152921504606584833)) % 2**64
    return data[:at] + word.to_bytes(8, "little") + data[at + 8 :]


# --- trees ------------------------------------------------------------------------------------


def _find_nodes(tree: Tree, at: Path = ()) -> list[Path]:
    """Places in a tree of lists and dictionaries."""
    found = [at]
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            found += _find_nodes(item, (*at, index))
    elif isinstance(tree, dict):
        for key, item in tree.items():
            found += _find_nodes(item, (*at, key))
    return found


def _get(tree: Tree, at: Path) -> Tree:
    for key in at:
        tree = tree[key]  # type: ignore[index]
    return tree


def _put(tree: Tree, at: Path, value: Tree) -> Tree:
    """The tree with another value at a place; copies what lies above it."""
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)  # type: ignore[call-overload]
    copy[at[0]] = _put(copy[at[0]], at[1:], value)
    return copy


def _mutate_tree(tree: Tree, draw: random.Random, other: Tree) -> Tree:
    at = draw.choice(_find_nodes(tree))
    if draw.random() < 0.15:
        return _put(tree, at, _get(other, draw.choice(_find_nodes(other))))
    if draw.random() < 0.15:
        return _put(tree, at, _get(tree, draw.choice(_find_nodes(tree))))
    return _put(tree, at, _mutate_node(_get(tree, at), draw))


def _mutate_node(node: Tree, draw: random.Random) -> Tree:
    if isinstance(node, bool) or node is None:
        return draw.choice((True, False, None, 0, b"", []))
    if isinstance(node, int):
        return draw.choice((draw.choice(INTEGERS), node + 1, node - 1, -node, node * 2, None))
    if isinstance(node, bytes):
        match draw.randrange(4):
            case 0:
                return draw.randbytes(draw.choice(SIZES))
            case 1:
                return node[: draw.randrange(len(node) + 1)]
            case 2 if node:
                at = draw.randrange(len(node))
                return node[:at] + bytes([node[at] ^ 1 << draw.randrange(8)]) + node[at + 1 :]
            case _:
                return node + node
    if isinstance(node, str):
        return draw.choice((draw.choice(TEXTS), node + node, node[:-1], node.upper(), node[::-1]))
    if isinstance(node, list):
        return _mutate_list(node, draw)
    if isinstance(node, dict):
        return _mutate_dict(node, draw)
    return draw.choice((0, None, ""))


def _mutate_list(node: list[Tree], draw: random.Random) -> Tree:
    at = draw.randrange(len(node) + 1)
    match draw.randrange(5):
        case 0:
            return node[:at] + node[at + 1 :]
        case 1 if node:
            return node[:at] + [draw.choice(node)] * draw.choice((1, 1, 2, 20)) + node[at:]
        case 2:
            return node[::-1]
        case 3:
            return [*node[:at], draw.choice(INTEGERS), *node[at:]]
        case _:
            return draw.choice(([], [node], node[:1], None, 0))


def _mutate_dict(node: dict[object, Tree], draw: random.Random) -> Tree:
    copy = dict(node)
    match draw.randrange(3):
        case 0 if node:
            del copy[draw.choice(list(node))]
        case 1 if node:
            key = draw.choice(list(node))
            copy[str(key) + draw.choice(("", "x", "_"))] = draw.choice(list(node.values()))
        case _:
            return draw.choice(({}, [node], None))
    return copy


def _unpack(data: bytes) -> Tree:
    return msgpack.unpackb(data, strict_map_key=False)


def _mutate_msgpack(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    try:
        tree = _unpack(data)
        other = _unpack(draw.choice(pool)) if pool else tree
        return bytes(msgpack.packb(_mutate_tree(tree, draw, other)))
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return _mutate_bytes(data, draw, pool)


def _mutate_routed(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    name, _, body = data.partition(b"\x00")
    if pool and draw.random() < 0.05:
        name = draw.choice(pool).partition(b"\x00")[0]
    return name + b"\x00" + _mutate_msgpack(body, draw, [item.partition(b"\x00")[2] for item in pool])


def _mutate_json(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    if draw.random() < 0.2:
        return _insert(data, ODD_JSON, draw)
    try:
        tree = json.loads(data)
        other = json.loads(draw.choice(pool)) if pool else tree
        return json.dumps(_mutate_tree(tree, draw, other)).encode()
    except (ValueError, TypeError, RecursionError):
        return _insert(data, ODD_JSON, draw)


# --- text and files ---------------------------------------------------------------------------


def _insert(data: bytes, words: Sequence[bytes], draw: random.Random) -> bytes:
    """A word in the place of something else."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(words) * draw.choice((1, 1, 1, 40)) + data[at + draw.choice((0, 1, 8)) :]


def _mutate_text(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    match draw.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, draw.choice(lines))
        case 2 if pool:
            lines[at] = draw.choice(draw.choice(pool).split(b"\n"))
        case _:
            lines[at] = _insert(lines[at], ODD_TEXT, draw)
    return b"\n".join(lines)


def _mutate_pem(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    """What is inside the armour, or the armour."""
    lines = data.split(b"\n")
    if draw.random() < 0.15 or len(lines) < 3:
        return _mutate_text(data, draw, pool)
    try:
        inner = base64.b64decode(b"".join(lines[1:-2]))
    except (binascii.Error, ValueError):
        return _mutate_text(data, draw, pool)
    body = base64.b64encode(_mutate_bytes(inner, draw, ()))
    wrapped = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join((lines[0], *wrapped, *lines[-2:]))


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_KINDS = (
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"iCCP",
    b"zTXt",
    b"iTXt",
    b"tEXt",
    b"pHYs",
    b"gAMA",
)
PNG_KINDS += (b"cHRM", b"sRGB", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"aaaa", b"ABCD")


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, content) of each chunk; what is cut off is dropped."""
    chunks, at = [], len(PNG_MAGIC)
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + min(length, len(data))]))
        at += 12 + length
    return chunks


def join_png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A file of the chunks with right lengths and check sums."""
    parts = [PNG_MAGIC]
    for kind, content in chunks:
        parts += [
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(kind + content)),
        ]
    return b"".join(parts)


def _mutate_png(data: bytes, draw: random.Random, pool: Sequence[bytes]) -> bytes:
    chunks = split_png(data)
    if not chunks:
        return _mutate_bytes(data, draw, pool)
    at = draw.randrange(len(chunks))
    kind, content = chunks[at]
    match draw.randrange(6):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(draw.randrange(len(chunks) + 1), (kind, content))
        case 2:
            chunks.insert(at, (draw.choice(PNG_KINDS), draw.choice((b"", content, b"a\x00\x00" + content))))
        case 3 if pool:
            chunks[at] = draw.choice(split_png(draw.choice(pool)) or [(kind, content)])
        case 4 if kind == b"IDAT":
            try:
                chunks[at] = (kind, zlib.compress(_mutate_bytes(zlib.decompress(content), draw, ())))
            except zlib.error:
                chunks[at] = (kind, _mutate_bytes(content, draw, ()))
        case _:
            chunks[at] = (kind, _mutate_bytes(content, draw, ()))
    return join_png(chunks)


_MUTATIONS: dict[Form, Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = {
    Form.BINARY: _mutate_words,
    Form.MSGPACK: _mutate_msgpack,
    Form.ROUTED: _mutate_routed,
    Form.JSON: _mutate_json,
    Form.TEXT: _mutate_text,
    Form.PEM: _mutate_pem,
    Form.PNG: _mutate_png,
}

# --- bombs ------------------------------------------------------------------------------------


def build_bombs(data: bytes, form: Form, size: int) -> list[bytes]:
    """Inputs of about `size` bytes that claim, nest or repeat as much as their length can say."""
    half, quarter = size // 2, size // 4
    bombs = [data + bytes(size), data * max(1, size // max(1, len(data)))]
    if form in (Form.MSGPACK, Form.ROUTED, Form.BINARY):
        claim = b"\xdd" + half.to_bytes(4, "big")
        bombs += [
            b"\x91" * size,
            claim * (size // 5),
            b"\xdd\xff\xff\xff\xff" + bytes(size),
            b"\xc6" + b"\xff" * 4,
        ]
        bombs += [b"\xde\xff\xff" + bytes(size), b"\x81\xa0" * half, b"\xc4\x00" * half, b"\xc0" * size]
        bombs += [_grow_lists(data, size, form)]
    if form in (Form.JSON, Form.TEXT):
        bombs += [b"[" * size, b'{"a":' * quarter, b"1" * size, b'"' + b"\\u0000" * (size // 6) + b'"']
        bombs += [
            b"- " * half,
            b"? " * half,
            b"&a [" + b"*a," * (size // 3),
            b"\n" * size,
            b"a: " * (size // 3),
        ]
        bombs += [b"a: [" + b"1," * half + b"]", b"=&" * half, _build_laughs()]
    return bombs


def _build_laughs() -> bytes:
    """Aliases of aliases: a billion values in a kilobyte."""
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(b"a%d: &a%d [" % (level, level) + b", ".join([b"*a%d" % (level - 1)] * 10) + b"]")
    return b"\n".join(lines)


def _grow_lists(data: bytes, size: int, form: Form) -> bytes:
    """The value with its last list repeated: valid in form, and as long as asked."""
    route, mark, body = data.partition(b"\x00") if form is Form.ROUTED else (b"", b"", data)
    try:
        tree = _unpack(body)
    except (ValueError, TypeError, msgpack.UnpackException):
        return data
    lists = [at for at in _find_nodes(tree) if at and isinstance(_get(tree, at), list) and _get(tree, at)]
    if not lists:
        return data
    at = lists[-1]
    items = _get(tree, at)
    assert isinstance(items, list)
    repeated = items * max(1, size // max(1, len(msgpack.packb(items))))
    return route + mark + bytes(msgpack.packb(_put(tree, at, repeated)))
