"""Server-sent events: every event of the bus, replayed after `Last-Event-ID`, with a heartbeat."""

import asyncio
import json
from collections.abc import Collection

from aiohttp import web

from node.api.errors import Problem, build_parameter_problem
from node.api.requests import VIEW
from node.events import Event, EventKind, Gap

HEARTBEAT_S = 15.0
MAX_EVENT_ID = 2**53
STREAMS: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("streams", set)
MAX_STREAMS = web.AppKey("max_streams", int)


def encode_event(event: Event) -> bytes:
    """`data` is one line of JSON: id, kind, time and the event's own fields under `data`."""
    body = {"id": event.id, "kind": event.kind.value, "time": event.time, "data": dict(event.data)}
    text = json.dumps(body, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.kind.value}\ndata: {text}\n\n".encode()


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
        await response.prepare(request)
        await response.write(b"retry: 2000\n\n")
        await _stream(request, response, after, kinds)
    except ConnectionResetError:
        pass  # the client left
    except asyncio.CancelledError:
        if task is None or task in streams:
            raise
        task.uncancel()  # `close_streams` asks for an orderly end
    finally:
        if task is not None:
            streams.discard(task)
    return response


async def _stream(
    request: web.Request, response: web.StreamResponse, after: int | None, kinds: Collection[EventKind]
) -> None:
    with request.app[VIEW].events.subscribe(after) as subscription:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    gap, events = await subscription.read()
            except TimeoutError:
                await response.write(b": alive\n\n")
                continue
            if gap is not None:
                await response.write(encode_gap(gap))
            wanted = b"".join(encode_event(event) for event in events if event.kind in kinds)
            if wanted:
                await response.write(wanted)


async def close_streams(app: web.Application) -> None:
    """End every open stream, so that a stopping node is not kept waiting by its readers."""
    streams = app[STREAMS]
    ending = list(streams)
    streams.clear()
    for task in ending:
        task.cancel()
