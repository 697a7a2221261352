"""Server-sent events: every event of the bus, replayed after `Last-Event-ID`, with a heartbeat.

A reader costs a task, a small socket buffer and its position on the bus, however slow it is; one that leaves
what was sent unread for too long is dropped, and may come back with its last id.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Collection

from aiohttp import web

from node.api.errors import Problem, build_parameter_problem
from node.api.requests import VIEW
from node.events import Event, EventKind, Gap

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
SOCKET_BUFFER_BYTES = 64 * 1024
"""What the kernel holds for one reader; by itself it would grow to megabytes for those that don't read."""
ENCODED_EVENTS = 512
MAX_EVENT_ID = 2**53
STREAMS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("streams", set)
MAX_STREAMS = web.AppKey("max_streams", int)
READER_TIMEOUT_S = web.AppKey("reader_timeout_s", float)


def encode_event(event: Event) -> bytes:
    """`data` is one line of JSON: id, kind, time and the event's own fields under `data`."""
    body = {"id": event.id, "kind": event.kind.value, "time": event.time, "data": dict(event.data)}
    text = json.dumps(body, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.kind.value}\ndata: {text}\n\n".encode()


class EventEncoder:
    """Encodes each event once, not once for each reader; keeps the newest."""

    def __init__(self, kept: int = ENCODED_EVENTS) -> None:
        self._kept = kept
        self._texts: dict[int, bytes] = {}

    def encode(self, event: Event) -> bytes:
        text = self._texts.get(event.id)
        if text is None:
            text = self._texts[event.id] = encode_event(event)
            if len(self._texts) > self._kept:
                del self._texts[next(iter(self._texts))]
        return text


ENCODER = web.AppKey("encoder", EventEncoder)


def encode_gap(gap: Gap) -> bytes:
    """Tells a reader that events were dropped before it came back; read the lists again."""
    return f'event: gap\ndata: {{"after":{gap.after},"oldest":{gap.oldest}}}\n\n'.encode()


def _get_last_id(request: web.Request) -> int | None:
    field = "Last-Event-ID" if "Last-Event-ID" in request.headers else "after"
    text = request.headers.get("Last-Event-ID", request.query.get("after"))
    if text is None or (text == "" and field == "Last-Event-ID"):
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > MAX_EVENT_ID:
        raise build_parameter_problem(
            field, "Expected the id of an event", "Send the last `id:` you received"
        )
    return int(text)


def _get_kinds(request: web.Request) -> Collection[EventKind]:
    text = request.query.get("kinds")
    if text is None:
        return tuple(EventKind)
    try:
        return {EventKind(part) for part in text.split(",")}
    except ValueError as error:
        raise build_parameter_problem(
            "kinds", "Unknown kind of event", f"Give some of {','.join(EventKind)}, separated by commas"
        ) from error


async def get_events(request: web.Request) -> web.StreamResponse:
    """Stream until the client goes or the node stops."""
    after, kinds = _get_last_id(request), _get_kinds(request)
    streams, most = request.app[STREAMS], request.app[MAX_STREAMS]
    if len(streams) >= most:
        raise Problem(
            503,
            "too-many-streams",
            f"{most} event streams are open already",
            remedy="Try again later, or raise api.max_event_streams",
            headers={"Retry-After": "10"},
        )
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    task = asyncio.current_task()
    if task is not None:
        streams.add(task)
    try:
        _bound_buffer(request)
        await response.prepare(request)
        await _Reader(request, response).run(after, kinds)
    except ConnectionResetError:
        pass  # the client left
    except SlowReader as error:
        logger.info("a reader of events is dropped: %s", error)
        if request.transport is not None:
            request.transport.abort()  # closing would wait for it to read
    except asyncio.CancelledError:
        if task is None or task in streams:
            raise
        task.uncancel()  # `close_streams` asks for an orderly end
    finally:
        if task is not None:
            streams.discard(task)
    return response


class SlowReader(Exception):
    """A reader has not taken what was sent to it."""


def _bound_buffer(request: web.Request) -> None:
    """Keep the kernel from buffering megabytes for a reader that does not read."""
    transport = request.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)


class _Reader:
    """One stream: what it is sent, and how long it may take to read it."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._app = request.app
        self._response = response
        self._remote = request.remote

    async def run(self, after: int | None, kinds: Collection[EventKind]) -> None:
        """Send until the client goes. Raises: SlowReader; ConnectionResetError."""
        encode = self._app[ENCODER].encode
        await self._write(b"retry: 2000\n\n")
        with self._app[VIEW].events.subscribe(after) as subscription:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        gap, events = await subscription.read()
                except TimeoutError:
                    await self._write(b": alive\n\n")
                    continue
                text = b"" if gap is None else encode_gap(gap)
                text += b"".join(encode(event) for event in events if event.kind in kinds)
                if text:
                    await self._write(text)

    async def _write(self, text: bytes) -> None:
        limit = self._app[READER_TIMEOUT_S]
        try:
            async with asyncio.timeout(limit):
                await self._response.write(text)
        except TimeoutError:
            raise SlowReader(f"{self._remote} has read nothing for {limit:.0f} s") from None


async def close_streams(app: web.Application) -> None:
    """End every open stream, so that a stopping node is not kept waiting by its readers."""
    streams = app[STREAMS]
    ending = list(streams)
    streams.clear()
    for task in ending:
        task.cancel()
