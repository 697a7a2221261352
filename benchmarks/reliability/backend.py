"""What a net must be able to suffer: the operations that processes and containers have in common."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from consensus.crypto import SigningKey

START_DEADLINE_S = 180.0
"""Longest start of a node; a shared machine can be many times slower than an idle one."""


class BackendError(Exception):
    """The net did not do what it was told; the text says what was seen."""


async def poll(
    read: Callable[[], Awaitable[bool]], what: str, deadline_s: float, every_s: float = 0.1
) -> None:
    """Return as soon as the answer is True. Raises: BackendError, saying what was awaited."""
    try:
        async with asyncio.timeout(deadline_s):
            while not await read():  # noqa: ASYNC110 - what is awaited is in another process
                await asyncio.sleep(every_s)
    except TimeoutError:
        raise BackendError(f"{what}: not within {deadline_s:.0f} s") from None


class Backend(Protocol):
    """A testnet of named nodes."""

    kind: str
    """`processes` or `containers`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    async def begin(self) -> None:
        """Make the net, if it has to, and return once every node is ready."""
        ...

    async def end(self) -> None:
        """Stop everything that `begin` started."""
        ...

    def get_url(self, name: str) -> str:
        """Where the node's public API is reached."""
        ...

    async def load_key(self, name: str) -> SigningKey:
        """The node's account key."""
        ...

    async def bmif(self, name: str, *arguments: str) -> str:
        """An operator's command at the node; its standard output."""
        ...

    def get_scratch(self, name: str, what: str) -> str:
        """A path that commands at the node may write to."""
        ...

    async def kill(self, name: str) -> None:
        """kill -9; returns once the node is gone."""
        ...

    async def stop(self, name: str) -> None:
        """Stop gracefully."""
        ...

    async def start(self, name: str) -> None:
        """Start a node that is down; returns once it is ready."""
        ...

    async def pause(self, name: str) -> None:
        """Freeze all of the node's processes."""
        ...

    async def resume(self, name: str) -> None: ...

    async def part(self, groups: Sequence[Sequence[str]]) -> None:
        """Cut every link between nodes of different groups; links that exist fall silent."""
        ...

    async def heal(self) -> None:
        """Undo `part`."""
        ...

    async def wipe(self, name: str) -> None:
        """Remove the data directory of a node that is down; keys and certificates stay."""
        ...

    async def set_clock(self, name: str, offset_s: float) -> None:
        """Step the running node's wall clock to the true time plus the offset."""
        ...

    async def read_logs(self) -> str:
        """The end of each node's log, for a failed run."""
        ...
