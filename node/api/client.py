"""A typed client of a node's APIs: asynchronous, and synchronous over the same calls.

async with Client("http://127.0.0.1:8100") as node:
    status = await node.get_status()

with SyncClient("http://127.0.0.1:8100") as node:
    status = node.call(node.api.get_status())
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from pydantic import JsonValue

from consensus.codec import encode
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from node.api import ceremonies, explorer_data, federations, jobs, schemas, trust
from node.api.debug import DebugModel
from node.api.drain import DrainModel
from node.api.fields import BlobRefModel
from node.api.payloads import encode_payload
from node.api.transport import ApiError, Transport

__all__ = ["READ_BYTES", "ApiError", "Client", "StreamedEvent", "SyncClient"]

T = TypeVar("T")
READ_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One server-sent event; kind `gap` says that some were dropped before it."""

    id: int | None
    kind: str
    data: dict[str, JsonValue]


class Client(Transport):
    """Asynchronous client; `operator_url` and `token` are needed for the operator's calls only."""

    # --- public -------------------------------------------------------------------------------

    async def get_status(self) -> schemas.StatusModel:
        return await self._get("/v1/status", schemas.StatusModel)

    async def get_document(self) -> dict[str, JsonValue]:
        """The OpenAPI document."""
        found: dict[str, JsonValue] = json.loads(await self._read(f"{self._url}/openapi.json"))
        return found

    async def get_reference(self) -> str:
        """The reference page, HTML."""
        return (await self._read(f"{self._url}/docs")).decode("utf-8")

    async def get_explorer(self, file: str | None = None) -> str:
        """The explorer's page, or a file that it loads."""
        path = "/" if file is None else f"/explorer/{file}"
        return (await self._read(f"{self._url}{path}")).decode("utf-8")

    async def get_metrics(self) -> str:
        """Prometheus' text."""
        return (await self._read(f"{self._url}/metrics")).decode("utf-8")

    async def get_block(self, block: str = "head") -> schemas.BlockModel:
        """By hash, height or `head`."""
        return await self._get(f"/v1/blocks/{block}", schemas.BlockModel)

    def iterate_blocks(self) -> AsyncIterator[schemas.BlockSummaryModel]:
        """The head chain, newest first."""
        return self._iterate("/v1/blocks", schemas.Page[schemas.BlockSummaryModel])

    def iterate_headers(self) -> AsyncIterator[schemas.HeaderModel]:
        """Of the head chain, newest first."""
        return self._iterate("/v1/headers", schemas.Page[schemas.HeaderModel])

    def iterate_mempool(self) -> AsyncIterator[schemas.TransactionSummaryModel]:
        """Waiting transactions, oldest first."""
        return self._iterate("/v1/mempool", schemas.Page[schemas.TransactionSummaryModel])

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

    def iterate_models(self) -> AsyncIterator[schemas.ModelSummaryModel]:
        """Models that reached a milestone."""
        return self._iterate("/v1/models", schemas.Page[schemas.ModelSummaryModel])

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

    async def get_contributions(self, task: str) -> explorer_data.ContributionsModel:
        return await self._get(f"/v1/tasks/{task}/contributions", explorer_data.ContributionsModel)

    def iterate_confirmations(self, task: str) -> AsyncIterator[explorer_data.ConfirmationModel]:
        """Openings in chain order, each with the validators who confirmed it."""
        page = schemas.Page[explorer_data.ConfirmationModel]
        return self._iterate(f"/v1/tasks/{task}/confirmations", page)

    async def get_preview(self, task: str) -> bytes:
        """PNG of two synthetic sources and what the task's settled model makes of them."""
        return await self._read(f"{self._url}/v1/models/{task}/preview.png")

    async def get_votes(self) -> explorer_data.LastVotesModel:
        """The last vote of each validator."""
        return await self._get("/v1/votes", explorer_data.LastVotesModel)

    async def search(self, text: str) -> explorer_data.SearchModel:
        """What a height, hash, address or id names."""
        return await self._get("/v1/search", explorer_data.SearchModel, {"q": text})

    def iterate_inference_models(self) -> AsyncIterator[jobs.InferenceModel]:
        return self._iterate("/v1/inference/models", schemas.Page[jobs.InferenceModel])

    async def get_inference_model(self, model: str) -> jobs.InferenceModel:
        return await self._get(f"/v1/inference/models/{model}", jobs.InferenceModel)

    def iterate_jobs(self) -> AsyncIterator[jobs.InferenceJobSummary]:
        return self._iterate("/v1/inference/jobs", schemas.Page[jobs.InferenceJobSummary])

    async def get_job(self, job: str) -> jobs.InferenceJob:
        return await self._get(f"/v1/inference/jobs/{job}", jobs.InferenceJob)

    async def get_job_result(self, job: str) -> bytes:
        """The confirmed result's bytes, a ciphertext, where the node holds them."""
        return await self._read(f"{self._url}/v1/inference/jobs/{job}/result")

    async def get_evaluators(self) -> jobs.EvaluatorsModel:
        return await self._get("/v1/inference/evaluators", jobs.EvaluatorsModel)

    def iterate_ceremonies(self) -> AsyncIterator[ceremonies.CeremonySummary]:
        return self._iterate("/v1/ceremonies", schemas.Page[ceremonies.CeremonySummary])

    async def get_ceremony(self, ceremony: str) -> ceremonies.Ceremony:
        return await self._get(f"/v1/ceremonies/{ceremony}", ceremonies.Ceremony)

    def iterate_federations(self) -> AsyncIterator[federations.FederationSummary]:
        return self._iterate("/v1/federations", schemas.Page[federations.FederationSummary])

    async def get_federation(self, federation: str) -> federations.Federation:
        return await self._get(f"/v1/federations/{federation}", federations.Federation)

    async def get_federation_round(self, federation: str, number: int) -> federations.RoundModel:
        return await self._get(f"/v1/federations/{federation}/rounds/{number}", federations.RoundModel)

    async def get_peers(self) -> schemas.PeersModel:
        return await self._get("/v1/peers", schemas.PeersModel)

    async def is_live(self) -> bool:
        """Whether the process answers."""
        try:
            return (await self._get("/livez", schemas.LiveModel)).live
        except ApiError:
            return False

    async def get_readiness(self) -> schemas.ReadyModel:
        """Every criterion by name, whether or not the node is ready. Raises: ApiError if it does not say."""
        try:
            return await self._get("/readyz", schemas.ReadyModel, retry=False)
        except ApiError as error:
            if error.problem is None or error.problem.criteria is None:
                raise
            return schemas.ReadyModel(ready=False, criteria=error.problem.criteria)

    async def is_ready(self) -> bool:
        try:
            return (await self.get_readiness()).ready
        except ApiError:
            return False

    async def stream_events(
        self, *, after: int | None = None, kinds: tuple[str, ...] = (), reconnect: bool = True
    ) -> AsyncGenerator[StreamedEvent]:
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

    async def get_blob_info(self, root: str) -> schemas.StoredBlobModel:
        """How much of a blob is on the node."""
        _, token = self._get_operator()
        return await self._get(f"/v1/operator/blobs/{root}/info", schemas.StoredBlobModel, token=token)

    async def join_ceremony(self, ceremony: str) -> ceremonies.Ceremony:
        """Have the node take part in a key ceremony of which its account is a member."""
        url, token = self._get_operator()
        return await self._request(
            "POST", f"{url}/v1/operator/ceremonies/{ceremony}/join", ceremonies.Ceremony, token=token
        )

    async def get_drain(self) -> DrainModel:
        """Whether the node takes new work."""
        _, token = self._get_operator()
        return await self._get("/v1/operator/drain", DrainModel, token=token)

    async def drain(self) -> DrainModel:
        """Have the node take no new work, for good."""
        url, token = self._get_operator()
        return await self._request("POST", f"{url}/v1/operator/drain", DrainModel, token=token)

    async def get_debug(self) -> DebugModel:
        """What the node tells its operator of its inside."""
        _, token = self._get_operator()
        return await self._get("/v1/operator/debug", DebugModel, token=token)

    async def get_operator_document(self) -> dict[str, JsonValue]:
        """The OpenAPI document of the operator's listener."""
        url, token = self._get_operator()
        found: dict[str, JsonValue] = json.loads(await self._read(f"{url}/openapi.json", token=token))
        return found

    async def get_blob(self, ref: BlobRef, path: Path) -> None:
        """Download a blob into a new file; the node fetches it from peers if it has to."""
        where, query = f"/v1/operator/blobs/{ref.root.hex()}", {"length": str(ref.length)}
        await self._download(where, query, path, f"blob {ref.root.hex()}")

    async def get_ledger_snapshot(self, path: Path, height: int | None = None) -> None:
        """Download a final state into a new file; whether it is whole shows by its end."""
        query = {} if height is None else {"height": str(height)}
        await self._download("/v1/operator/ledger/snapshot", query, path, "the snapshot")

    async def _download(self, where: str, query: dict[str, str], path: Path, what: str) -> None:
        url, token = self._get_operator()
        part = path.with_name(path.name + ".part")
        headers = {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=600)
        try:
            async with self._get_session().get(
                url + where,
                params=query,
                headers=headers,
                timeout=timeout,
            ) as response:
                await self._check(response)
                with part.open("wb") as file:
                    async for piece in response.content.iter_chunked(READ_BYTES):
                        await asyncio.to_thread(file.write, piece)
            part.replace(path)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"{what} could not be fetched: {error}") from error
        finally:
            part.unlink(missing_ok=True)  # of a disk that is full, too


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
        self,
        url: str,
        *,
        operator_url: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        cached: int = 0,
    ) -> None:
        self.api = Client(url, operator_url=operator_url, token=token, timeout_s=timeout_s, cached=cached)
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
