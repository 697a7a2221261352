"""Targets: the codec, by every class that is decoded anywhere, and every message between peers."""

from collections.abc import Callable, Iterable
from typing import get_args

from consensus.block import Block, Body, Header, Work
from consensus.claims import Presence
from consensus.codec import CodecError, NonCanonicalError, decode, decode_stored, encode
from consensus.params import Genesis
from consensus.task import Claim, SealedClaim
from consensus.transaction import SignedTransaction
from consensus.tree import Proof
from consensus.vote import Vote
from node.gossip.messages import Message, MessageError, decode_message, encode_message
from tests.fuzz.examples import build_examples
from tests.fuzz.sources import find_decoded_classes
from tests.fuzz.target import Form, Target, require

ALWAYS: tuple[type, ...] = (
    Block,
    Body,
    Header,
    Work,
    SignedTransaction,
    Claim,
    SealedClaim,
    Presence,
    Vote,
    Proof,
    Genesis,
)
LARGE = {Block: 3, SignedTransaction: 3}
"""Classes that hold most of the others, and their share of the time."""


def build_codec_target(cls: type, extra: Callable[[], Iterable[bytes]] = tuple) -> Target:
    """`decode` and `decode_stored` of one class.

    Only CodecError leaves them; what `decode` accepts encodes to exactly the bytes; what only
    `decode_stored` accepts is refused as not canonical, and encodes to other bytes.
    """

    def run(data: bytes) -> None:
        try:
            stored = decode_stored(cls, data)
        except CodecError:
            stored = None
        try:
            value = decode(cls, data)
        except NonCanonicalError:
            require(stored is not None and encode(stored) != data, "refused as not canonical, but it is")
            raise
        require(type(value) is cls, f"decoded to a {type(value).__name__}")
        require(value == stored, "decode and decode_stored differ")
        require(encode(value) == data, "encodes to other bytes")
        require(decode(cls, encode(value)) == value, "does not return from its own bytes")

    def build_seeds() -> Iterable[bytes]:
        yield from (encode(value) for value in build_examples(cls))
        yield from extra()

    return Target(
        f"codec.{cls.__name__}",
        run,
        (CodecError,),
        build_seeds,
        Form.MSGPACK,
        effort=LARGE.get(cls, 1),
    )


def build_message_target(cls: type) -> Target:
    """`decode_message` of one class: only MessageError leaves it, and what it accepts is canonical."""

    def run(data: bytes) -> None:
        message = decode_message(cls, data)
        require(type(message) is cls, f"decoded to a {type(message).__name__}")
        require(encode_message(message) == data, "encodes to other bytes")
        require(decode_message(cls, encode_message(message)) == message, "does not return from its own bytes")

    def build_seeds() -> Iterable[bytes]:
        for value in build_examples(cls):
            yield encode(value)

    return Target(f"message.{cls.__name__}", run, (MessageError,), build_seeds, Form.MSGPACK)


def build_targets(get_extra: Callable[[type], Callable[[], Iterable[bytes]]]) -> list[Target]:
    """`get_extra` gives real objects of a class, beside the made-up ones."""
    messages: tuple[type, ...] = get_args(Message)
    classes = {cls.__name__: cls for cls in (*ALWAYS, *find_decoded_classes()) if cls not in messages}
    return [
        *(build_codec_target(classes[name], get_extra(classes[name])) for name in sorted(classes)),
        *(build_message_target(cls) for cls in sorted(messages, key=lambda cls: cls.__name__)),
    ]
