"""Codec: every value returns from its bytes, and no bytes decode to a value of another encoding."""

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.block import Block, Body, Header, Work
from consensus.claims import Presence
from consensus.codec import CodecError, decode, encode
from consensus.jobs import EvaluatorRecord, JobRecord, ModelRecord, Receipt
from consensus.params import Genesis
from consensus.records import Account, TaskState
from consensus.task import Claim, PublishTask
from consensus.transaction import SignedTransaction
from consensus.tree import Proof
from consensus.types import MAX_AMOUNT, Address, Amount, Hash32, Height, Millis, Signature

TYPES = [
    SignedTransaction,
    Block,
    Body,
    Header,
    Work,
    Claim,
    Presence,
    PublishTask,
    Genesis,
    Account,
    TaskState,
    Proof,
    ModelRecord,
    JobRecord,
    Receipt,
    EvaluatorRecord,
]

relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])

integers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 31, 32, 127, 128, 255, 256, 65_535, 65_536, 2**32, -1, -32, -33, -128, -129]),
)
quantities = st.integers(0, MAX_AMOUNT)
identifiers = st.binary(min_size=32, max_size=32)
BASIC = {
    int: integers,
    bytes: st.binary(max_size=40),
    str: st.text(max_size=40),
    bool: st.booleans(),
    Hash32: identifiers,
    Address: identifiers,
    Signature: st.binary(min_size=64, max_size=64) | st.just(b""),
    Amount: quantities,
    Height: quantities,
    Millis: quantities,
}


@cache
def build_strategy(annotation: object) -> st.SearchStrategy[object]:
    if annotation in BASIC:
        return BASIC[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return st.lists(build_strategy(arguments[0]), max_size=3).map(tuple)
    if origin in (Union, UnionType):
        return st.one_of(st.none() if item is NoneType else build_strategy(item) for item in arguments)
    if is_dataclass(annotation):
        hints = get_type_hints(annotation)
        return st.builds(annotation, **{f.name: build_strategy(hints[f.name]) for f in fields(annotation)})
    return st.sampled_from(list(annotation))


@pytest.mark.parametrize("cls", TYPES)
def test_every_value_returns_from_its_bytes(cls: type) -> None:
    @relaxed
    @given(build_strategy(cls))
    def check(value: object) -> None:
        data = encode(value)
        assert decode(cls, data) == value
        assert encode(decode(cls, data)) == data

    check()


@pytest.mark.parametrize("cls", [SignedTransaction, Block, TaskState])
def test_mutated_bytes_never_decode_to_something_that_encodes_differently(cls: type) -> None:
    @relaxed
    @given(build_strategy(cls), st.data())
    def check(value: object, data: st.DataObject) -> None:
        mutated = bytearray(encode(value))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(mutated) - 1))
            kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
            if kind == "delete" and len(mutated) > 1:
                del mutated[at]
            elif kind == "insert":
                mutated.insert(at, data.draw(st.integers(0, 255)))
            else:
                mutated[at] = data.draw(st.integers(0, 255))
        try:
            decoded = decode(cls, bytes(mutated))
        except CodecError:
            return
        assert encode(decoded) == bytes(mutated)

    check()


@relaxed
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_cleanly(data: bytes) -> None:
    for cls in TYPES:
        try:
            assert encode(decode(cls, data)) == data
        except CodecError:
            continue
