"""How the client speaks HTTP: one session, problems as exceptions, reads again what a broken link cost.

Only reads are tried again, for they change nothing: where a connection broke before the answer was whole,
and where a proxy or a busy node said 502, 503, 504 or 429. A node that nobody reaches is told at once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from node.api.errors import PROBLEM_TYPE, ProblemModel
from node.api.schemas import Page

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)

READ_RETRIES = 2
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
BUSY = frozenset({429, 502, 503, 504})
MAX_CACHED_BYTES = 1024 * 1024


class ApiError(Exception):
    """The node can't be reached, or answered with a problem document."""

    def __init__(
        self,
        message: str,
        problem: ProblemModel | None = None,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.status = status if problem is None else problem.status
        """HTTP status, None if there was no answer."""
        self.retry_after_s = retry_after_s
        """What the node asks to wait."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer and its ETag."""

    tag: str
    body: bytes


def _describe(problem: ProblemModel) -> str:
    where = f" ({problem.field})" if problem.field else ""
    why = f" [{problem.reason}]" if problem.reason else ""
    return f"{problem.detail}{where}{why}. {problem.remedy}"


def _parse_pause(text: str | None) -> float | None:
    """Seconds of a Retry-After header; None for a date or nothing."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


class Transport:
    """The session of one client; `cached` answers are kept and asked for again by their ETags."""

    def __init__(
        self,
        url: str,
        *,
        operator_url: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = READ_RETRIES,
        cached: int = 0,
    ) -> None:
        self._url = url.rstrip("/")
        self._operator_url = None if operator_url is None else operator_url.rstrip("/")
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._retries = retries
        self._cached = cached
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url})"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Expected an entered client (`async with`)")
        return self._session

    def _get_operator(self) -> tuple[str, str]:
        if self._operator_url is None or self._token is None:
            raise ApiError(
                "This needs the operator's API: give the node's --config (it names port and token)"
            )
        return self._operator_url, self._token

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raises: ApiError for an answer that tells of a problem."""
        if response.status < 400:
            return
        text = await response.text()
        pause = _parse_pause(response.headers.get("Retry-After"))
        if response.content_type == PROBLEM_TYPE:
            try:
                problem = ProblemModel.model_validate_json(text)
            except ValidationError as error:
                raise ApiError(f"{response.url} gave a problem of another version: {text[:200]}") from error
            raise ApiError(_describe(problem), problem, retry_after_s=pause)
        raise ApiError(
            f"{response.url} answered {response.status} {response.reason}",
            status=response.status,
            retry_after_s=pause,
        )

    # --- one request --------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        url: str,
        model: type[Model],
        *,
        query: dict[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        media: str = "application/json",
        token: str | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> Model:
        """Send once. Raises: ApiError."""
        headers = {} if data is None else {"Content-Type": media}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._get_session().request(
                method, url, params=query, data=data, headers=headers, timeout=timeout or self._timeout
            ) as response:
                await self._check(response)
                return _parse(url, model, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _build_unreachable(url, error) from error

    # --- reads --------------------------------------------------------------------------------

    async def _get(
        self,
        path: str,
        model: type[Model],
        query: dict[str, str] | None = None,
        *,
        token: str | None = None,
        retry: bool = True,
    ) -> Model:
        """A read of the public API, or with `token` of the operator's."""
        url = (self._url if token is None else self._get_operator()[0]) + path
        return _parse(url, model, await self._read(url, query, token=token, retry=retry))

    async def _read(
        self, url: str, query: dict[str, str] | None = None, *, token: str | None = None, retry: bool = True
    ) -> bytes:
        """The bytes of an answer, tried again where the link broke or the node was busy."""
        left, pause = self._retries if retry else 0, FIRST_PAUSE_S
        while True:
            try:
                return await self._read_once(url, query, token)
            except ApiError as error:
                if left == 0 or error.status not in BUSY:
                    raise
                wanted = error.retry_after_s
            except aiohttp.ClientConnectorError as error:
                raise _build_unreachable(url, error) from error  # nobody listens there
            except (aiohttp.ClientError, TimeoutError) as error:
                if left == 0 or isinstance(error, TimeoutError):
                    raise _build_unreachable(url, error) from error
                wanted = None
            left -= 1
            await asyncio.sleep(min(max(pause, wanted or 0.0), MAX_PAUSE_S))
            pause *= 2

    async def _read_once(self, url: str, query: dict[str, str] | None, token: str | None) -> bytes:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        key = url if query is None else f"{url}?{sorted(query.items())}"
        kept = self._kept.get(key)
        if kept is not None:
            headers["If-None-Match"] = kept.tag
        async with self._get_session().get(url, params=query, headers=headers) as response:
            if response.status == 304 and kept is not None:
                self._kept.move_to_end(key)
                return kept.body
            await self._check(response)
            body = await response.read()
            tag = response.headers.get("ETag")
        if self._cached and tag is not None and len(body) <= MAX_CACHED_BYTES:
            self._kept[key] = _Kept(tag, body)
            self._kept.move_to_end(key)
            if len(self._kept) > self._cached:
                self._kept.popitem(last=False)
        return body

    async def _iterate(self, path: str, page: type[Page[Item]]) -> AsyncIterator[Item]:
        """All items of a listing, page by page."""
        cursor: str | None = None
        while True:
            query = {"limit": "100"} | ({} if cursor is None else {"cursor": cursor})
            found = await self._get(path, page, query)
            for item in found.items:
                yield item
            cursor = found.next
            if cursor is None:
                return


def _build_unreachable(url: str, error: Exception) -> ApiError:
    return ApiError(f"{url} can't be reached: {str(error) or 'time-out'}. Is the node running?")


def _parse(url: str, model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ApiError(f"{url} gave an answer of another version: {error.errors()[0]['msg']}") from error
