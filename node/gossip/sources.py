"""A linked peer, as the fetcher of blobs sees it."""

from collections.abc import Callable

from consensus.types import Hash32
from node.fetch import SourceBusy, SourceError
from node.gossip.limits import Fault
from node.gossip.links import Link, Refused
from node.gossip.messages import ChunkRequest, ManifestRequest, Route
from node.gossip.transport import Status, TransportError


class PeerBlobSource:
    """A linked peer as a `BlobSource`."""

    def __init__(self, link: Link, chain_id: Hash32, report: Callable[[str, Fault, str], None]) -> None:
        self._link = link
        self._chain_id = chain_id
        self._report = report

    @property
    def node_id(self) -> str:
        return self._link.node_id

    async def get_manifest(self, root: Hash32) -> bytes | None:
        return await self._request(Route.MANIFEST, ManifestRequest(self._chain_id, root))

    async def get_chunk(self, root: Hash32, index: int) -> bytes | None:
        return await self._request(Route.CHUNK, ChunkRequest(self._chain_id, root, index))

    async def _request(self, route: Route, message: ManifestRequest | ChunkRequest) -> bytes | None:
        try:
            return await self._link.request(route, message)
        except Refused as error:
            if error.status is Status.BUSY:
                raise SourceBusy(str(error)) from error
            raise SourceError(str(error)) from error
        except TransportError as error:
            raise SourceError(str(error)) from error

    def report_corrupt(self, detail: str) -> None:
        self._report(self.node_id, Fault.CORRUPT_BLOB, detail)
