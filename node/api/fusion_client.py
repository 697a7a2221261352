"""A client of the routes of encrypted fusion: upload, wait, download, delete."""

from collections.abc import AsyncIterator, Callable

import aiohttp

from node.api.client import READ_BYTES, ApiError, Client
from node.api.fusion_payloads import FusionModel
from node.clock import Clock, SystemClock

UPLOAD_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
FIRST_POLL_S = 0.1
POLL_S = 1.0
Report = Callable[[int, int], None]
"""Told (done, total) bytes."""
Watch = Callable[[FusionModel], None]


class FusionClient(Client):
    """`Client` with encrypted fusion."""

    async def post_fusion(
        self, task: str, weights: str, tile: int, data: bytes, report: Report = lambda done, total: None
    ) -> FusionModel:
        """Upload one encrypted request. Raises: ApiError, with the node's problem where it refuses."""

        async def read() -> AsyncIterator[bytes]:
            for start in range(0, len(data), READ_BYTES):
                piece = data[start : start + READ_BYTES]
                yield piece
                report(start + len(piece), len(data))

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
        query = {"task": task, "weights": weights, "tile": str(tile)}
        url = f"{self._url}/v1/fusions"
        try:
            async with self._get_session().post(
                url, params=query, data=read(), headers=headers, timeout=UPLOAD_TIMEOUT
            ) as response:
                await self._check(response)
                return FusionModel.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"{url} broke off the upload: {str(error) or 'time-out'}") from error

    async def get_fusion(self, fusion: str) -> FusionModel:
        return await self._get(f"/v1/fusions/{fusion}", FusionModel)

    async def wait_fusion(
        self, fusion: str, watch: Watch = lambda found: None, clock: Clock | None = None
    ) -> FusionModel:
        """The fusion once it is done. Raises: ApiError if it failed."""
        clock, pause = clock or SystemClock(), FIRST_POLL_S
        while True:
            found = await self.get_fusion(fusion)
            watch(found)
            if found.state == "done":
                return found
            if found.state == "failed":
                raise ApiError(f"{self._url} could not fuse: {found.detail}")
            await clock.sleep(pause)
            pause = min(2 * pause, POLL_S)

    async def get_fusion_result(self, found: FusionModel) -> bytes:
        """The encrypted image; never more bytes than announced. Raises: ApiError."""
        url = f"{self._url}/v1/fusions/{found.id}/result"
        data = bytearray()
        try:
            async with self._get_session().get(url, timeout=UPLOAD_TIMEOUT) as response:
                await self._check(response)
                async for piece in response.content.iter_chunked(READ_BYTES):
                    data += piece
                    if len(data) > found.result_bytes:
                        raise ApiError(f"{url} sends more than {found.result_bytes} bytes")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"{url} broke off: {str(error) or 'time-out'}") from error
        return bytes(data)

    async def delete_fusion(self, fusion: str) -> None:
        url = f"{self._url}/v1/fusions/{fusion}"
        try:
            async with self._get_session().delete(url) as response:
                await self._check(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"{url} can't be reached: {str(error) or 'time-out'}") from error
