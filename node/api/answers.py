"""Answers of reads kept as bytes while nothing changes: many readers of one node ask for the same few things.

An answer is kept for one revision of the node, which moves with every change of chain, mempool and claims,
and ten times a second anyway; so nothing that is read is older than that.
"""

from collections.abc import Hashable

from aiohttp import web

from node.api.requests import JSON, is_known

MOST_ANSWERS = 256
MOST_BYTES = 16 * 1024 * 1024
LARGEST = 256 * 1024
"""Larger ones are built anew; few ask for them."""


class KeptAnswers:
    """Of one application; memory is bounded by number and bytes."""

    def __init__(self) -> None:
        self._revision: Hashable = None
        self._answers: dict[str, tuple[bytes, dict[str, str]]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, request: web.Request, revision: Hashable) -> web.Response | None:
        """The answer to this path and query, if it was given in this revision; None where nothing is kept."""
        if revision is None:
            return None
        if revision != self._revision:
            self._revision = revision
            self._answers.clear()
            self._bytes = 0
        kept = self._answers.get(request.path_qs)
        if kept is None:
            return None
        body, headers = kept
        if is_known(request, headers.get("ETag", "")):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=JSON, charset="utf-8", headers=headers)

    def keep(self, request: web.Request, response: web.StreamResponse, revision: Hashable) -> None:
        """Keep a whole JSON answer with its ETag; anything else is let go."""
        if revision is None or revision != self._revision or response.status != 200:
            return
        if not isinstance(response, web.Response) or response.content_type != JSON:
            return
        body, tag = response.body, response.headers.get("ETag")
        if not isinstance(body, bytes) or tag is None or len(body) > LARGEST:
            return
        if len(self._answers) < MOST_ANSWERS and self._bytes + len(body) <= MOST_BYTES:
            headers = {"ETag": tag}
            if "Cache-Control" in response.headers:
                headers["Cache-Control"] = response.headers["Cache-Control"]
            self._answers[request.path_qs] = (body, headers)
            self._bytes += len(body)
