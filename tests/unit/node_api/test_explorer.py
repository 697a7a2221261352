"""The explorer's files and data: right types and policy, nothing outside reachable, pictures bounded."""

import asyncio
import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from PIL import Image

from consensus.records import DraftRecord
from consensus.types import Signature
from consensus.vote import Checkpoint, Vote
from node.api.explorer import load_files
from node.api.explorer_data import MAX_CONFIRMING
from node.api.preview import PREVIEWS, PreviewDesk, PreviewFull, PreviewOrder
from tests.unit.node_api.fakes import CUSTODY, DRAFT, MINER, FakeNode
from workloads.base import WorkloadError
from workloads.fusion import KIND, WORKLOAD, FusionSpec
from workloads.preview import GAP_PX, PREVIEW_SIZE, build_preview

SPEC = FusionSpec().encode()
WEIGHTS = WORKLOAD.build_initial_weights(SPEC, 0)


def give_model(node: FakeNode) -> str:
    """A settled model that a picture can be made of; its weights' digest is the API's to tell."""
    publication = node.state.get_publication(node.task)
    assert publication is not None
    draft = replace(DRAFT, model=SPEC, parameters=len(WEIGHTS))
    node.state = node.state.with_draft(publication.draft, DraftRecord(draft, CUSTODY.address, True))
    found = node.milestones[0]
    node.milestones[0] = replace(found, work=replace(found.work, weights=WEIGHTS))
    return node.task.hex()


# --- files ------------------------------------------------------------------------------------


async def test_the_page_is_served_under_a_strict_policy(api: TestClient) -> None:
    response = await api.get("/")
    assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "trusted-types 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("name", "media"),
    [("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")],
)
async def test_files_have_their_type_and_an_etag(api: TestClient, name: str, media: str) -> None:
    response = await api.get(f"/explorer/{name}")
    assert (response.status, response.content_type) == (200, media)
    assert await response.read() == files("node.explorer").joinpath(name).read_bytes()
    again = await api.get(f"/explorer/{name}", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status, await again.read()) == (304, b"")
    changed = await api.get(f"/explorer/{name}", headers={"If-None-Match": '"another"'})
    assert changed.status == 200
    assert (await api.head(f"/explorer/{name}")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "__init__.py",
        "%2e%2e%2fview.py",
        "..%2f..%2fpyproject.toml",
        "%2Fetc%2Fpasswd",
        "a%00b",
        "index.html%2f",
    ],
)
async def test_nothing_else_is_reachable(api: TestClient, path: str) -> None:
    from yarl import URL

    response = await api.get(URL(f"/explorer/{path}", encoded=True))
    assert response.status == 404
    assert response.content_type == "application/problem+json"


def test_every_file_that_is_named_is_there() -> None:
    """Imports of scripts and what the page loads; none of it from elsewhere."""
    found = load_files()
    assert {"index.html", "app.js", "style.css", "icon.svg", "theme.js"} <= found.keys()
    named = set()
    for name, file in found.items():
        text = file.body.decode("utf-8")
        assert not re.search(r"(?:src|href|url\(|from|import\()\s*[=(]?\s*[\"']?(?:https?:)?//", text), name
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.]+)"', text))
        if name.endswith(".html"):
            named |= set(re.findall(r'(?:src|href)="/explorer/([\w.]+)"', text))
    assert named <= found.keys()
    assert named | {"index.html"} == found.keys()


def test_no_script_parses_text_as_a_page() -> None:
    for name, file in load_files().items():
        if name.endswith(".js"):
            text = file.body.decode("utf-8")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), name


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.controls: set[str] = set()
        self.labels: set[str] = set()
        self.landmarks: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "script" and "src" not in given:
            self.inline.append(tag)
        if tag in ("header", "nav", "main", "footer"):
            self.landmarks.add(tag)
        if tag == "input":
            self.controls.add(str(given["id"]))
        if tag == "label":
            self.labels.add(str(given["for"]))


def test_the_page_has_landmarks_labels_and_nothing_inline() -> None:
    page = _Page()
    page.feed(load_files()["index.html"].body.decode("utf-8"))
    assert not page.inline
    assert page.landmarks == {"header", "nav", "main", "footer"}
    assert page.controls == page.labels


# --- contrast ---------------------------------------------------------------------------------

PAIRS = [
    *(("text", ground) for ground in ("ground", "surface", "raised")),
    *(("muted", ground) for ground in ("ground", "surface")),
    *(("accent", ground) for ground in ("ground", "surface")),
    *((tone, ground) for tone in ("good", "warn", "bad", "info") for ground in (f"{tone}-ground", "surface")),
]


def get_luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def get_contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    low, high = sorted((get_luminance(one), get_luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_themes_have_contrast() -> None:
    text = load_files()["style.css"].body.decode("utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body))
        for body in re.findall(r":root[^{]*{([^}]*)}", text)
    ]
    light, dark, by_system = (block for block in blocks if block)
    assert dark == by_system
    for theme in (light, dark):
        for front, ground in PAIRS:
            assert get_contrast(theme[front], theme[ground]) >= 4.5, (front, ground)
        for shape in ("curve", "reached", "ahead"):
            assert get_contrast(theme[shape], theme["surface"]) >= 3, shape


# --- data -------------------------------------------------------------------------------------


async def test_contributions_have_patches_and_bytes(api: TestClient, node: FakeNode) -> None:
    found = await (await api.get(f"/v1/tasks/{node.task.hex()}/contributions")).json()
    (item,) = found["items"]
    assert item["organisation"] == "hospital-1"
    assert item["training"] == {"batches": 2, "patches": 1500, "bytes": 2000}
    assert item["validation"] == {"batches": 1, "patches": 300, "bytes": 1000}
    assert found["bytes"] == 3000
    assert (await api.get(f"/v1/tasks/{'0' * 64}/contributions")).status == 404


def add_votes(node: FakeNode, *keys: bytes, height: int) -> None:
    """A block that carries these validators' votes for the block of a height."""
    target = Checkpoint(node.records[height].block.header.height, node.records[height].hash)
    votes = tuple(Vote(key, node.get_finalized(), target, Signature(bytes(64))) for key in keys)
    record = node.grow()
    node.records[-1] = replace(
        record, block=replace(record.block, body=replace(record.block.body, votes=votes))
    )


async def test_confirmations_name_who_voted_above(api: TestClient, node: FakeNode) -> None:
    opened = node.openings[1].height
    before = await (await api.get(f"/v1/tasks/{node.task.hex()}/confirmations")).json()
    assert [item["voters"] for item in before["items"]] == [[], []]
    add_votes(node, CUSTODY.address, height=opened)
    add_votes(node, MINER.address, CUSTODY.address, height=opened + 1)
    found = (await (await api.get(f"/v1/tasks/{node.task.hex()}/confirmations")).json())["items"]
    assert [item["kind"] for item in found] == ["loss", "gradient"]
    assert all(item["voters"] == [CUSTODY.address.hex(), MINER.address.hex()] for item in found)
    assert all(item["stake"] == 200 for item in found)
    assert [item["opening"] for item in found] == [item.hash.hex() for item in node.openings]


async def test_confirmations_are_looked_for_in_so_many_blocks(api: TestClient, node: FakeNode) -> None:
    height = len(node.records) - 1
    for _ in range(MAX_CONFIRMING + 2):
        node.grow()
    add_votes(node, CUSTODY.address, height=height)
    found = await (await api.get(f"/v1/tasks/{node.task.hex()}/confirmations?limit=1")).json()
    assert found["items"][0]["voters"] == []
    assert found["next"] is not None


async def test_the_last_vote_of_each_validator(api: TestClient, node: FakeNode) -> None:
    assert (await (await api.get("/v1/votes")).json())["items"] == []
    add_votes(node, CUSTODY.address, MINER.address, height=1)
    add_votes(node, CUSTODY.address, bytes(32), height=2)
    found = (await (await api.get("/v1/votes")).json())["items"]
    assert [(item["validator"], item["target"]["height"]) for item in found] == [
        (CUSTODY.address.hex(), 2),
        (MINER.address.hex(), 1),
    ]


async def test_search_names_what_there_is(api: TestClient, node: FakeNode) -> None:
    publication = node.state.get_publication(node.task)
    assert publication is not None
    wanted = {
        "3": ("block", node.records[3].hash.hex()),
        node.records[2].hash.hex(): ("block", node.records[2].hash.hex()),
        node.task.hex(): ("task", node.task.hex()),
        publication.draft.hex(): ("draft", publication.draft.hex()),
        node.openings[0].transaction.hex(): ("transaction", node.openings[0].transaction.hex()),
        node.model.hex(): ("model", node.model.hex()),
        node.job.hex(): ("job", node.job.hex()),
        node.federation.hex(): ("federation", node.federation.hex()),
        node.ceremony.hex(): ("ceremony", node.ceremony.hex()),
        MINER.address.hex(): ("account", MINER.address.hex()),
    }
    for text, (kind, identifier) in wanted.items():
        found = (await (await api.get(f"/v1/search?q={text}")).json())["items"]
        assert [(item["kind"], item["id"]) for item in found] == [(kind, identifier)]
    for nothing in ("99999", "12" * 32):
        assert (await (await api.get(f"/v1/search?q={nothing}")).json())["items"] == []
    for bad in ("", "?q=", "?q=xyz", "?q=0x12", f"?q={'A' * 64}"):
        assert (await api.get(f"/v1/search{bad}")).status == 400


# --- preview ----------------------------------------------------------------------------------


def test_a_picture_shows_two_sources_and_the_fused_image() -> None:
    data = build_preview(KIND, SPEC, WEIGHTS)
    assert data == build_preview(KIND, SPEC, WEIGHTS)
    image = Image.open(io.BytesIO(data))
    assert image.size == (3 * PREVIEW_SIZE + 2 * GAP_PX, PREVIEW_SIZE)
    panels = [
        image.convert("L").crop((left, 0, left + PREVIEW_SIZE, PREVIEW_SIZE)).tobytes()
        for left in range(0, image.width, PREVIEW_SIZE + GAP_PX)
    ]
    assert len(set(panels)) == 3
    with pytest.raises(WorkloadError, match="no picture"):
        build_preview("other", SPEC, WEIGHTS)
    with pytest.raises(WorkloadError, match="weights"):
        build_preview(KIND, SPEC, WEIGHTS[1:])
    with pytest.raises(WorkloadError, match="model"):
        build_preview(KIND, b"\x00", WEIGHTS)


async def test_the_preview_route_makes_a_picture_once(api: TestClient, node: FakeNode) -> None:
    task = give_model(node)
    digest = (await (await api.get(f"/v1/models/{task}")).json())["weights_digest"]
    path = f"/v1/models/{task}/preview.png"
    first, second = await asyncio.gather(api.get(path), api.get(f"{path}?digest={digest}"))
    assert (first.status, first.content_type) == (200, "image/png")
    assert await first.read() == await second.read() == build_preview(KIND, SPEC, WEIGHTS)
    assert first.headers["Cache-Control"] == "no-cache"
    assert "immutable" in second.headers["Cache-Control"]
    assert (await api.get(path, headers={"If-None-Match": first.headers["ETag"]})).status == 304
    assert (await api.get(path)).status == 200
    assert api.app is not None
    assert api.app[PREVIEWS].made == 1


async def test_what_has_no_picture_says_why(api: TestClient, node: FakeNode) -> None:
    other = await api.get(f"/v1/models/{node.task.hex()}/preview.png?digest={'0' * 64}")
    assert (other.status, (await other.json())["field"]) == (404, "digest")
    assert (await api.get(f"/v1/models/{'0' * 64}/preview.png")).status == 404
    assert (await api.get(f"/v1/models/{node.task.hex()}/preview.png?size=9")).status == 400
    # The fake's own model is not one that can be drawn.
    bad = await api.get(f"/v1/models/{node.task.hex()}/preview.png")
    assert (bad.status, (await bad.json())["type"]) == (409, "urn:bmif:problem:no-picture")
    node.milestones.clear()
    assert (await api.get(f"/v1/models/{node.task.hex()}/preview.png")).status == 404


async def test_pictures_are_bounded_in_number() -> None:
    desk = PreviewDesk(waiting=1, kept=1)
    order = PreviewOrder("unknown", b"", ())
    asked = asyncio.create_task(desk.get(order))
    await asyncio.sleep(0)
    with pytest.raises(PreviewFull):
        await desk.get(replace(order, model=b"other"))
    asked.cancel()
    await desk.close()
    assert not desk._running


def test_no_library_of_training_or_encryption_is_loaded(tmp_path: Path) -> None:
    """In a process of its own: the applications with the explorer import neither, nor does a picture."""
    import subprocess

    code = (
        "import sys, node.api.app; from workloads.preview import build_preview; "
        "from workloads.fusion import KIND, WORKLOAD, FusionSpec; m = FusionSpec().encode(); "
        "build_preview(KIND, m, WORKLOAD.build_initial_weights(m, 0)); "
        "print(sorted({'torch', 'Pyfhel'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
