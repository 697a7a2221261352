"""Headers: below a proved hash from several peers at once, above it from whoever claims them, a bounded
number."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from consensus.block import Header
from consensus.crypto import verify
from consensus.identifiers import compute_block_hash
from consensus.params import ChainParams
from consensus.types import MAX_TIME_MS, Hash32, Height
from consensus.versions import GENESIS_VERSION, get_highest_version
from consensus.vote import Checkpoint
from node.clock import Clock
from node.gossip.limits import Fault
from node.gossip.messages import MAX_HEADERS, SignedHeader
from node.sync.crew import Crew, CrewLimits
from node.sync.ports import Lacking, Poisoned, SyncNetwork

AHEAD = 16
"""Ranges of headers on their way or waiting for those above them."""


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    count: int


def _is_linked(headers: Sequence[Header], params: ChainParams) -> bool:
    """Whether each follows the one before it, as far as that can be told without state (B2, B3)."""
    return all(
        after.height == before.height + 1
        and after.parent == compute_block_hash(before)
        and after.time >= before.time + params.min_block_ms
        for before, after in pairwise(headers)
    )


def _is_sound(header: Header, chain_id: Hash32) -> bool:
    return (
        header.version >= GENESIS_VERSION
        and header.chain_id == chain_id
        and header.height > 0
        and 0 <= header.time <= MAX_TIME_MS
    )


class HeaderFetcher:
    """Headers that lead down from a hash, newest first: each range is proved by the one above it."""

    def __init__(
        self,
        network: SyncNetwork,
        clock: Clock,
        chain_id: Hash32,
        params: ChainParams,
        get_peers: Callable[[], Collection[str]],
        limits: CrewLimits | None = None,
    ) -> None:
        self._network = network
        self._chain_id = chain_id
        self._params = params
        self._batch = MAX_HEADERS
        self._crew: Crew[_Range, tuple[Header, ...]] = Crew(clock, get_peers, self._fetch, limits)

    async def __aenter__(self) -> "HeaderFetcher":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._crew.__aexit__(*error)

    @property
    def busy(self) -> tuple[str, ...]:
        return self._crew.busy

    async def fetch_below(
        self, top: Checkpoint, bottom: int, take: Callable[[Sequence[Header]], bool]
    ) -> Checkpoint:
        """Hand over ranges of headers, ascending in themselves, from `top` down to height `bottom`.

        `take` returns False to end early. Returns the block below the lowest header handed over, of which
        the headers say no more than its hash. Whoever gives a range that does not lead down from what is
        above it is blamed, and others are asked for it. Raises: SyncStopped.
        """
        expected = top
        submitted: int = top.height
        ready: dict[int, tuple[_Range, str, tuple[Header, ...]]] = {}
        while expected.height >= bottom:
            while submitted >= bottom and self._crew.open_jobs + len(ready) < AHEAD:
                count = min(self._batch, submitted - bottom + 1)
                self._crew.submit(_Range(submitted - count + 1, count))
                submitted -= count
            while expected.height not in ready:
                job, peer, headers = await self._crew.get_result()
                ready[job.start + job.count - 1] = (job, peer, headers)
            job, peer, headers = ready.pop(expected.height)
            if compute_block_hash(headers[-1]) != expected.hash:
                self._network.report(peer, Fault.INVALID_OBJECT, "its headers don't lead to the proved one")
                self._crew.exclude(peer)
                self._crew.submit(job, first=True, refused=(peer,))
                continue
            expected = Checkpoint(Height(job.start - 1), headers[0].parent)
            if not take(headers):
                break
        return expected

    async def _fetch(self, peer: str, job: _Range) -> tuple[Header, ...]:
        reply = await self._network.request_headers(peer, job.start, job.count)
        headers = tuple(signed.header for signed in reply.headers)
        if len(headers) < job.count:
            raise Lacking(f"{peer} lacks headers")
        is_right = (
            len(headers) == job.count
            and headers[0].height == job.start
            and all(_is_sound(header, self._chain_id) for header in headers)
            and _is_linked(headers, self._params)
        )
        if not is_right:
            self._network.report(peer, Fault.MALFORMED, "headers that don't follow each other")
            raise Poisoned(f"headers from height {job.start}")
        return headers


async def fetch_above(
    network: SyncNetwork, peer: str, chain_id: Hash32, params: ChainParams, below: Header, count: int
) -> tuple[Header, ...]:
    """What one peer claims to follow a header, at most `count`, linked and each signed by its proposer.

    Raises: TransportError; Lacking if the peer's chain is another one by now; Poisoned after reporting it.
    """
    start = below.height + 1
    reply = await network.request_headers(peer, start, count, signed=True)
    # What is of an unknown version says nothing here; whoever claims it may be right, so nobody is blamed.
    claimed = tuple(
        takewhile(lambda item: item.header.version <= get_highest_version(), reply.headers[:count])
    )
    headers = tuple(signed.header for signed in claimed)
    if not headers or headers[0].parent != compute_block_hash(below):
        raise Lacking(f"{peer} has nothing that follows height {below.height}")
    if any(signed.signature is None for signed in claimed):
        raise Lacking(f"{peer} holds no bodies from height {start} on")
    is_right = _is_linked((below, *headers), params) and all(
        _is_sound(signed.header, chain_id) and _is_signed(signed) for signed in claimed
    )
    if not is_right:
        network.report(peer, Fault.INVALID_OBJECT, "headers that are not signed or don't follow each other")
        raise Poisoned(f"headers from height {start}")
    return headers


def _is_signed(signed: SignedHeader) -> bool:
    header, signature = signed.header, signed.signature
    return signature is not None and verify(header.proposer, "block", compute_block_hash(header), signature)
