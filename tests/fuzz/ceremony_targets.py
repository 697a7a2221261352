"""Targets: what a ceremony's members say of their exchange keys, and the share that a member keeps."""

from collections.abc import Iterable
from functools import cache

import numpy as np

from he.errors import GateError
from he.multiparty.masking import PairSecrets
from he.multiparty.sharing import KeyShare
from he.params import get_params
from tests.fuzz.target import Target, require
from workloads.base import WorkloadError
from workloads.ceremony import CeremonyTerms
from workloads.ceremony_blobs import Coin
from workloads.ceremony_share import decode_share, encode_share

NINE = (9).to_bytes(32, "little")
PRESET = "test-2048-60x3"


def run_coin(data: bytes) -> None:
    """What passes has this one encoding, and is a point of which no exchange is zero."""
    coin = Coin.decode(data)
    require(coin.encode() == data, "encodes to other bytes")
    require(int.from_bytes(coin.exchange_key, "little") not in (0, 1), "a point of small order")


def run_share(data: bytes) -> None:
    """WorkloadError alone, and one encoding."""
    require(encode_share(*decode_share(data, allow_insecure=True)) == data, "encodes to other bytes")


def build_coins() -> Iterable[bytes]:
    for key in (NINE, bytes(32), (2**255 - 20).to_bytes(32, "little"), b"\xff" * 32):
        yield bytes(32) + key


@cache
def build_shares() -> tuple[bytes, ...]:
    params = get_params(PRESET, allow_insecure=True)
    terms = CeremonyTerms(bytes(range(32)), PRESET, 3, 2, 1, allow_insecure=True)
    share = KeyShare(params, 1, 2, np.ones((2, params.ring), dtype=np.uint64))
    return (encode_share(terms, share, PairSecrets(1, {0: bytes(32), 2: bytes(32)})),)


def build_targets() -> list[Target]:
    return [
        Target("ceremony.coin", run_coin, (GateError,), build_coins),
        Target("ceremony.share", run_share, (WorkloadError,), build_shares, max_bytes=40_000),
    ]
