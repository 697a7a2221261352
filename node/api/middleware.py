"""What stands before every route: security headers, pages of other origins, host names, rates and sizes."""

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from node.api.errors import Handler, Problem
from node.api.fusions import UPLOAD_PATH
from node.api.requests import FILE_TAG
from node.settings import OperatorSettings, is_loopback

MAX_CLIENTS = 4_096
HTML_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
READ_METHODS = ("GET", "HEAD")
EXPOSED = "ETag, Location, Retry-After, X-Request-Id"
ACCEPTED = "Accept, Content-Type, If-None-Match, Last-Event-ID"
PREFLIGHT_S = 600

Signal = Callable[[web.Request, web.StreamResponse], Awaitable[None]]


# --- headers of every answer --------------------------------------------------------------------


async def add_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`, so that streams and files have them too; what a handler set stays."""
    headers = response.headers
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    is_page = response.content_type == "text/html"
    headers.setdefault("Content-Security-Policy", HTML_POLICY if is_page else DATA_POLICY)
    tag = response.get(FILE_TAG)
    if tag is not None:
        headers[hdrs.ETAG] = tag  # a file's own would be of its time of writing


async def forbid_storing(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare` of the operator's listener: nothing of it stays in a cache."""
    response.headers.setdefault("Cache-Control", "no-store")


# --- pages of other origins (CORS) --------------------------------------------------------------


def build_cors(origins: Collection[str]) -> tuple[Middleware, Signal]:
    """Answers preflights and marks answers for the pages of `origins`; others get neither.

    `*` lets every page read. Nothing is ever allowed with credentials: this API knows none.
    """
    listed, reads_all = frozenset(origins) - {"*"}, "*" in origins

    def find(request: web.Request) -> str | None:
        """What to allow: the page's origin, `*`, or nothing."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return None
        return origin if origin in listed else "*" if reads_all else None

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != "OPTIONS" or wanted is None or not origins:
            return await handler(request)
        response = web.Response(status=204)
        allowed = find(request)
        if allowed is not None:
            methods = (*READ_METHODS, "POST", "DELETE") if allowed != "*" else READ_METHODS
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(methods)
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ACCEPTED
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_S)
        return response

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        if not origins:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        allowed = find(request)
        if allowed is None or (allowed == "*" and request.method not in (*READ_METHODS, "OPTIONS")):
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED

    return answer_preflight, mark


# --- names of the operator's listener -----------------------------------------------------------


def _get_host(header: str) -> str:
    """The name of a Host header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].lower()


def build_host_check(settings: OperatorSettings) -> Middleware:
    """Refuses requests under foreign names: a page whose name was made to mean this machine stays out."""
    names = frozenset((settings.host.lower(), *(name.lower() for name in settings.hosts)))

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = _get_host(request.headers.get(hdrs.HOST, ""))
        if not is_loopback(host) and host.strip("[]") not in names:
            raise Problem(
                421,
                "foreign-host",
                "This listener is not addressed by that name",
                field="Host",
                remedy="Use 127.0.0.1 or localhost, or add the name to operator.hosts",
            )
        return await handler(request)

    return check


# --- rates and sizes ----------------------------------------------------------------------------


class RateLimiter:
    """A token bucket for each client address; the least recent address is forgotten first."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._burst = float(max(1, per_minute // 6))
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 if the client may go on, else the seconds that it must wait."""
        now = self._clock()
        tokens, last = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens - 1 if not wait else tokens, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


def build_limit(limiter: RateLimiter, max_bytes: int) -> Middleware:
    """Refuses bodies above the limit before they are read, and posts above the rate."""

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Streamed to disk, and of a length that its route knows to the byte.
        is_upload = request.path == UPLOAD_PATH
        if (request.content_length or 0) > max_bytes and not is_upload:
            raise Problem(
                413,
                "body-too-large",
                f"The body has {request.content_length} bytes, the limit is {max_bytes}",
                field="(body)",
                remedy="Send a smaller body",
            )
        if request.method == "POST":
            wait = limiter.take(request.remote or "")
            if wait:
                seconds = str(math.ceil(wait))
                raise Problem(
                    429,
                    "too-many-requests",
                    "Too many posts",
                    remedy=f"Wait {seconds} s",
                    headers={"Retry-After": seconds},
                )
        return await handler(request)

    return limit
