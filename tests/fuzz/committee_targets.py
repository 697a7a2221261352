"""Targets: what members of a committee say, and boxes that are sealed to them."""

from collections.abc import Iterable

from consensus.codec import CodecError, decode, encode
from consensus.types import Address, Hash32, Signature
from node.committee.boxes import Box, BoxError, get_public_key, open_box, seal
from node.committee.messages import (
    CommitteeMessage,
    MessageError,
    OpeningKind,
    Partial,
    Ready,
    TellRoot,
    decode_message,
    encode_message,
)
from tests.fuzz.examples import build_examples
from tests.fuzz.target import Form, Target, require

PRIVATE = bytes(range(32))
CONTEXT = b"context"
HASH = Hash32(bytes(32))
WHO = Address(bytes(32))


def run_message(data: bytes) -> None:
    """What passes is canonical and within its limits."""
    message = decode_message(data)
    require(encode_message(message) == data, "encodes to other bytes")
    if isinstance(message, Partial):
        require(all(value >= 0 for row in message.values for value in row), "a negative residue")


def run_box(data: bytes) -> None:
    """Nothing but what was sealed opens."""
    try:
        box = decode(Box, data)
    except CodecError as error:
        raise BoxError(str(error)) from error
    require(open_box(PRIVATE, box, CONTEXT) == b"told", "opens to something else")


def build_messages() -> Iterable[bytes]:
    box, none = Box(HASH, b"sealed"), Signature(bytes(64))
    yield encode_message(TellRoot(HASH, HASH, 1, 2, WHO, WHO, box, none))
    yield encode_message(Ready(HASH, HASH, 1, OpeningKind.LOSS, WHO, HASH, none))
    yield encode_message(Partial(HASH, HASH, 1, OpeningKind.GRADIENT, 2, WHO, HASH, ((1, 2**60), (3,)), none))
    for example in build_examples(CommitteeMessage):
        yield encode(example)


def build_boxes() -> Iterable[bytes]:
    yield encode(seal(get_public_key(PRIVATE), b"told", CONTEXT))
    for point in (0, 1):
        yield encode(Box(Hash32(point.to_bytes(32, "little")), bytes(20)))


def build_targets() -> list[Target]:
    return [
        Target("committee.message", run_message, (MessageError,), build_messages, Form.MSGPACK),
        Target("committee.box", run_box, (BoxError,), build_boxes, Form.MSGPACK),
    ]
