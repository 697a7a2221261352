"""The explorer's files: `/` is its page, `/explorer/{file}` what the page loads.

All of them are read from the package once. A name is looked up among theirs, never joined to a path, so
there is nothing outside that a request could reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from http import HTTPStatus
from importlib.resources import files

from aiohttp import web

from node.api.errors import build_not_found
from node.api.requests import FRESH, Route, is_known

PAGE = "index.html"
MEDIA: Mapping[str, str] = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing inline, and no text that the browser would parse as a page or a script."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    body: bytes
    media: str
    tag: str


@lru_cache(maxsize=1)
def load_files() -> Mapping[str, StaticFile]:
    """The explorer's files by name."""
    found = {}
    for entry in files("node.explorer").iterdir():
        media = MEDIA.get("." + entry.name.rpartition(".")[2])
        if media is not None and entry.is_file():
            body = entry.read_bytes()
            tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
            found[entry.name] = StaticFile(body, media, tag)
    return found


def _answer_file(request: web.Request, name: str) -> web.Response:
    found = load_files().get(name)
    if found is None:
        raise build_not_found("file", "such file of the explorer", "Start at /")
    headers = {"ETag": found.tag, "Cache-Control": FRESH, "Content-Security-Policy": POLICY}
    if is_known(request, found.tag):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return web.Response(body=found.body, content_type=found.media, charset="utf-8", headers=headers)


async def get_page(request: web.Request) -> web.Response:
    return _answer_file(request, PAGE)


async def get_file(request: web.Request) -> web.Response:
    return _answer_file(request, request.match_info["file"])


STATIC_ROUTES: tuple[Route, ...] = (
    Route("GET", "/", "getExplorer", get_page, "The explorer", media="text/html", cached=True),
    Route(
        "GET",
        "/explorer/{file}",
        "getExplorerFile",
        get_file,
        "What the explorer's page loads: styles, scripts, icon",
        media="*/*",
        errors=(404,),
        cached=True,
    ),
)
