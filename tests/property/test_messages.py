"""Messages of peers: whatever was encoded decodes to the same, whatever else is refused with one error."""

from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from consensus.types import Hash32, Height
from node.gossip.messages import (
    MAX_HASHES,
    MAX_INLINE_BYTES,
    Announced,
    Announcement,
    ChunkRequest,
    HashesReply,
    HashesRequest,
    Hello,
    Kind,
    ManifestRequest,
    Message,
    MessageError,
    ObjectsReply,
    ObjectsRequest,
    PeersReply,
    PeersRequest,
    PeerStatus,
    decode_message,
    encode_message,
)

hashes = st.binary(min_size=32, max_size=32).map(Hash32)
heights = st.integers(0, 2**53).map(Height)
kinds = st.sampled_from(Kind)
optional_data = st.none() | st.binary(max_size=MAX_INLINE_BYTES)
statuses = st.builds(PeerStatus, hashes, hashes, heights, hashes, st.text(max_size=64))

announced = st.builds(Announced, kinds, hashes, optional_data)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, statuses, st.text(max_size=262), st.integers(0, 9), st.binary(max_size=8)),
    st.builds(
        Announcement,
        hashes,
        st.lists(st.builds(Announced, kinds, hashes, optional_data), max_size=5).map(tuple),
    ),
    st.builds(ObjectsRequest, hashes, kinds, st.lists(hashes, max_size=5).map(tuple)),
    st.builds(ObjectsReply, st.lists(optional_data, max_size=5).map(tuple)),
    st.builds(HashesRequest, hashes, heights, st.integers(0, MAX_HASHES)),
    st.builds(HashesReply, st.lists(hashes, max_size=5).map(tuple)),
    st.builds(ManifestRequest, hashes, hashes),
    st.builds(ChunkRequest, hashes, hashes, st.integers(0, 511)),
    st.builds(PeersRequest, hashes),
    st.builds(PeersReply, st.lists(st.text(max_size=262), max_size=5).map(tuple)),
)
TYPES = (
    Hello,
    Announcement,
    ObjectsRequest,
    ObjectsReply,
    HashesRequest,
    HashesReply,
    ManifestRequest,
    ChunkRequest,
    PeersRequest,
    PeersReply,
)

T = TypeVar("T", bound=Message)


def try_decode(cls: type[T], data: bytes) -> T | None:
    try:
        return decode_message(cls, data)
    except MessageError:
        return None


@given(messages)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode_message(type(message), encode_message(message)) == message


@given(messages, st.data())
def test_changed_bytes_mean_something_else_or_nothing(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(encode_message(message))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert try_decode(type(message), bytes(encoded)) != message


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_message_errors(data: bytes) -> None:
    for cls in TYPES:
        found = try_decode(cls, data)
        assert found is None or encode_message(found) == data
