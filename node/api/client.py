"""A typed client of a node's APIs: asynchronous, and synchronous over the same calls.

async with Client("http://127.0.0.1:8100") as node:
    status = await node.get_status()

with SyncClient("http://127.0.0.1:8100") as node:
    status = node.call(node.api.get_status())
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from pydantic import BaseModel, JsonValue, ValidationError

from consensus.codec import encode
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from node.api import federations, jobs, schemas, trust
from node.api.errors import PROBLEM_TYPE, ProblemModel
from node.api.fields import BlobRefModel
from node.api.payloads import encode_payload

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)
READ_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024


class ApiError(Exception):
    """The node can't be reached, or answered with a problem document."""

    def __init__(self, message: str, problem: ProblemModel | None = None) -> None:
        super().__init__(message)
        self.problem = problem

    @property
    def status(self) -> int | None:
        """HTTP status, None if there was no answer."""
        return None if self.problem is None else self.problem.status


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One server-sent event; kind `gap` says that some were dropped before it."""

    id: int | None
    kind: str
    data: dict[str, JsonValue]


def _describe(problem: ProblemModel) -> str:
    where = f" ({problem.field})" if problem.field else ""
    why = f" [{problem.reason}]" if problem.reason else ""
    return f"{problem.detail}{where}{why}. {problem.remedy}"


class Client:
    """Asynchronous client; `operator_url` and `token` are needed for the operator's calls only."""

    def __init__(
        self, url: str, *, operator_url: str | None = None, token: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self._url = url.rstrip("/")
        self._operator_url = None if operator_url is None else operator_url.rstrip("/")
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"Client({self._url})"

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

    # --- transport ----------------------------------------------------------------------------

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            return
        text = await response.text()
        if response.content_type == PROBLEM_TYPE:
            problem = ProblemModel.model_validate_json(text)
            raise ApiError(_describe(problem), problem)
        raise ApiError(f"{response.url} answered {response.status} {response.reason}")

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
        headers = {} if data is None else {"Content-Type": media}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._get_session().request(
                method, url, params=query, data=data, headers=headers, timeout=timeout or self._timeout
            ) as response:
                await self._check(response)
                return model.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(
                f"{url} can't be reached: {str(error) or 'time-out'}. Is the node running?"
            ) from error
        except ValidationError as error:
            raise ApiError(f"{url} gave an answer of another version: {error.errors()[0]['msg']}") from error

    async def _get(self, path: str, model: type[Model], query: dict[str, str] | None = None) -> Model:
        return await self._request("GET", self._url + path, model, query=query)

    async def _iterate(self, path: str, page: type[schemas.Page[Item]]) -> AsyncIterator[Item]:
        cursor: str | None = None
        while True:
            query = {"limit": "100"} | ({} if cursor is None else {"cursor": cursor})
            found = await self._get(path, page, query)
            for item in found.items:
                yield item
            cursor = found.next
            if cursor is None:
                return

    def _get_operator(self) -> tuple[str, str]:
        if self._operator_url is None or self._token is None:
            raise ApiError(
                "This needs the operator's API: give the node's --config (it names port and token)"
            )
        return self._operator_url, self._token

    # --- public -------------------------------------------------------------------------------

    async def get_status(self) -> schemas.StatusModel:
        return await self._get("/v1/status", schemas.StatusModel)

    async def get_block(self, block: str = "head") -> schemas.BlockModel:
        """By hash, height or `head`."""
        return await self._get(f"/v1/blocks/{block}", schemas.BlockModel)

    def iterate_blocks(self) -> AsyncIterator[schemas.BlockSummaryModel]:
        """The head chain, newest first."""
        return self._iterate("/v1/blocks", schemas.Page[schemas.BlockSummaryModel])

    async def get_transaction(self, transaction: str) -> schemas.TransactionStatusModel:
        return await self._get(f"/v1/transactions/{transaction}", schemas.TransactionStatusModel)

    async def submit_transaction(self, transaction: SignedTransaction) -> Hash32:
        found = await self._request(
            "POST",
            f"{self._url}/v1/transactions",
            schemas.SubmittedModel,
            data=encode(transaction),
            media="application/msgpack",
        )
        return Hash32(bytes.fromhex(found.id))

    async def get_draft(self, draft: str) -> schemas.DraftStatusModel:
        return await self._get(f"/v1/drafts/{draft}", schemas.DraftStatusModel)

    def iterate_tasks(self) -> AsyncIterator[schemas.TaskSummaryModel]:
        return self._iterate("/v1/tasks", schemas.Page[schemas.TaskSummaryModel])

    async def get_task(self, task: str) -> schemas.TaskModel:
        return await self._get(f"/v1/tasks/{task}", schemas.TaskModel)

    def iterate_steps(self, task: str) -> AsyncIterator[schemas.StepModel]:
        return self._iterate(f"/v1/tasks/{task}/steps", schemas.Page[schemas.StepModel])

    def iterate_openings(self, task: str) -> AsyncIterator[schemas.OpeningModel]:
        return self._iterate(f"/v1/tasks/{task}/openings", schemas.Page[schemas.OpeningModel])

    async def get_model(self, task: str) -> schemas.TrainedModel:
        return await self._get(f"/v1/models/{task}", schemas.TrainedModel)

    async def get_account(self, address: str) -> schemas.AccountModel:
        return await self._get(f"/v1/accounts/{address}", schemas.AccountModel)

    async def get_validators(self) -> trust.ValidatorsModel:
        return await self._get("/v1/validators", trust.ValidatorsModel)

    async def get_finality(self) -> trust.FinalityModel:
        return await self._get("/v1/finality", trust.FinalityModel)

    async def get_governance(self) -> trust.GovernanceStateModel:
        return await self._get("/v1/governance", trust.GovernanceStateModel)

    async def get_milestones(self, task: str) -> trust.MilestonesModel:
        """Milestones that were taken, with the verdicts on each."""
        return await self._get(f"/v1/tasks/{task}/milestones", trust.MilestonesModel)

    def iterate_inference_models(self) -> AsyncIterator[jobs.InferenceModel]:
        return self._iterate("/v1/inference/models", schemas.Page[jobs.InferenceModel])

    async def get_inference_model(self, model: str) -> jobs.InferenceModel:
        return await self._get(f"/v1/inference/models/{model}", jobs.InferenceModel)

    def iterate_jobs(self) -> AsyncIterator[jobs.InferenceJobSummary]:
        return self._iterate("/v1/inference/jobs", schemas.Page[jobs.InferenceJobSummary])

    async def get_job(self, job: str) -> jobs.InferenceJob:
        return await self._get(f"/v1/inference/jobs/{job}", jobs.InferenceJob)

    async def get_evaluators(self) -> jobs.EvaluatorsModel:
        return await self._get("/v1/inference/evaluators", jobs.EvaluatorsModel)

    def iterate_federations(self) -> AsyncIterator[federations.FederationSummary]:
        return self._iterate("/v1/federations", schemas.Page[federations.FederationSummary])

    async def get_federation(self, federation: str) -> federations.Federation:
        return await self._get(f"/v1/federations/{federation}", federations.Federation)

    async def get_federation_round(self, federation: str, number: int) -> federations.RoundModel:
        return await self._get(f"/v1/federations/{federation}/rounds/{number}", federations.RoundModel)

    async def get_peers(self) -> schemas.PeersModel:
        return await self._get("/v1/peers", schemas.PeersModel)

    async def is_ready(self) -> bool:
        try:
            return (await self._get("/readyz", schemas.ReadyModel)).ready
        except ApiError:
            return False

    async def stream_events(
        self, *, after: int | None = None, kinds: tuple[str, ...] = (), reconnect: bool = True
    ) -> AsyncIterator[StreamedEvent]:
        """Events for ever; a broken stream is taken up after the last id.

        Raises: ApiError when the node can't be reached any more.
        """
        last, failures = after, 0
        while True:
            try:
                async for event in self._stream_once(last, kinds):
                    last = event.id if event.id is not None else last
                    failures = 0
                    yield event
            except (aiohttp.ClientError, TimeoutError) as error:
                failures += 1
                if not reconnect or failures > 5:
                    raise ApiError(f"{self._url}/v1/events broke off: {error}") from error
            if not reconnect:
                return
            await asyncio.sleep(min(0.2 * 2**failures, 5.0))

    async def _stream_once(self, after: int | None, kinds: tuple[str, ...]) -> AsyncIterator[StreamedEvent]:
        query = {"kinds": ",".join(kinds)} if kinds else {}
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        async with self._get_session().get(
            f"{self._url}/v1/events",
            params=query,
            headers=headers,
            timeout=timeout,
            max_line_size=MAX_EVENT_BYTES,
        ) as response:
            await self._check(response)
            fields: dict[str, str] = {}
            async for line in response.content:
                text = line.decode("utf-8").rstrip("\r\n")
                if text:
                    name, _, value = text.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if "data" in fields:
                    yield _parse_event(fields)
                fields = {}

    # --- operator -----------------------------------------------------------------------------

    async def sign_and_submit(self, payload: Payload) -> Hash32:
        """Have the node sign with its key and submit; returns the transaction's id."""
        url, token = self._get_operator()
        body = json.dumps({"payload": encode_payload(payload).model_dump(mode="json")}).encode()
        found = await self._request(
            "POST", f"{url}/v1/operator/transactions", schemas.SubmittedModel, data=body, token=token
        )
        return Hash32(bytes.fromhex(found.id))

    async def put_blob(self, path: Path, report: Callable[[int], None] = lambda count: None) -> BlobRef:
        """Upload a file, streaming; `report` gets the bytes of each piece sent."""
        url, token = self._get_operator()

        async def read() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, READ_BYTES):
                    yield piece
                    report(len(piece))

        found = await self._request(
            "PUT",
            f"{url}/v1/operator/blobs",
            BlobRefModel,
            data=read(),
            media="application/octet-stream",
            token=token,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=120),
        )
        return BlobRef(Hash32(bytes.fromhex(found.root)), found.length)

    async def get_blob(self, ref: BlobRef, path: Path) -> None:
        """Download a blob into a new file; the node fetches it from peers if it has to."""
        url, token = self._get_operator()
        part = path.with_name(path.name + ".part")
        headers = {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
        try:
            async with self._get_session().get(
                f"{url}/v1/operator/blobs/{ref.root.hex()}",
                params={"length": str(ref.length)},
                headers=headers,
                timeout=timeout,
            ) as response:
                await self._check(response)
                with part.open("wb") as file:
                    async for piece in response.content.iter_chunked(READ_BYTES):
                        await asyncio.to_thread(file.write, piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            part.unlink(missing_ok=True)
            raise ApiError(f"blob {ref.root.hex()} could not be fetched: {error}") from error
        part.replace(path)


def _parse_event(fields: dict[str, str]) -> StreamedEvent:
    kind = fields.get("event", "message")
    try:
        body = json.loads(fields["data"])
        data = body if kind == "gap" else body["data"]
        identifier = int(fields["id"]) if "id" in fields else None
    except (ValueError, KeyError, TypeError) as error:
        raise ApiError(f"an event is not as documented: {error}") from error
    return StreamedEvent(identifier, kind, data)


class SyncClient:
    """The same calls without `await`: `node.call(node.api.get_status())`."""

    def __init__(
        self, url: str, *, operator_url: str | None = None, token: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.api = Client(url, operator_url=operator_url, token=token, timeout_s=timeout_s)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        self.call(self.api.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self.api.__aexit__(kind, error, trace))
        self._runner.__exit__(kind, error, trace)

    def call(self, request: Coroutine[object, object, T]) -> T:
        """Wait for one call."""
        return self._runner.run(request)

    def collect(self, items: AsyncIterator[T], limit: int | None = None) -> list[T]:
        """All items of a listing, or the first `limit`."""

        async def gather() -> list[T]:
            found: list[T] = []
            if limit == 0:
                return found
            async for item in items:
                found.append(item)
                if limit is not None and len(found) >= limit:
                    break
            return found

        return self.call(gather())
