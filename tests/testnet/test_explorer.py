"""The explorer in a real Chromium: clicked through against a testnet that mines; live and for everybody."""

import asyncio
import json
import re
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from selenium.webdriver.common.keys import Keys

from node.api.app import build_public_app
from node.api.sse import close_streams
from node.api.view import Criterion, Readiness
from node.events import EventKind
from node.settings import ApiSettings
from tests.testnet.accessibility import check_accessible, check_narrow
from tests.testnet.browser import Browser, run_browser
from tests.testnet.fleet import Fleet, Recipe, run_fleet
from tests.unit.node_api.conftest import build_config
from tests.unit.node_api.fakes import FakeNode
from tests.unit.node_api.test_explorer import give_model

pytestmark = pytest.mark.slow

NARROW, SCROLLING, WIDE = 360, 740, 1600
"""Widths of a window: of a phone; where tables are tables still, but wider than their place; of a screen."""
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
LISTS = (
    "#/",
    "#/blocks",
    "#/tasks",
    "#/validators",
    "#/accounts",
    "#/inference",
    "#/federations",
    "#/committees",
    "#/peers",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A testnet with a task that is being mined, and a window on one of its nodes."""

    fleet: Fleet
    task: str
    browser: Browser


class TitledFleet(Fleet):
    """Publishes under a hostile title."""

    def publish_as(self, title: str, recipe: Recipe) -> str:
        self.published += 1
        custody, hospital = self.config("node1"), self.config("node2")
        draft = self.bmif_json("draft", "task", "draft", "--title", title, *recipe.build_draft(), *custody)
        encrypted = str(self.directory / f"encrypted-{self.published}")
        self.bmif("data", "encrypt", draft, "-o", encrypted, *recipe.build_pairs(), *hospital)
        contribution = self.bmif_json("contribution", "task", "contribute", encrypted, *hospital)
        publication = ("--contribution", contribution, *recipe.build_publication(), *custody)
        return self.bmif_json("task", "task", "publish", draft, *publication)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two nodes, custody and miner; the window looks at the miner's."""
    with run_fleet(tmp_path_factory.mktemp("explorer") / "fleet", 2, 1) as running:
        fleet = TitledFleet(running.directory, running.clients, running.stack)
        url = fleet.testnet.get_api_url(fleet.testnet.select(("node2",))[0])
        with run_browser(url) as browser:
            browser.resize(1280)
            browser.open("#/")
            browser.run("window.notReloaded = true")
            rungs = ("0.036:1000", "0.024:1001", "0.012:500", "0.0075:333")
            task = fleet.publish_as(HOSTILE, Recipe(rungs, learning_rate=0.08))
            yield Scene(fleet, task, browser)


def test_the_overview_follows_the_chain_without_reloading(scene: Scene) -> None:
    """The window was opened before the task was there: all that it shows of it came by events."""
    browser, fleet = scene.browser, scene.fleet
    browser.wait(lambda: HOSTILE in browser.get_text(), "the task appears")
    browser.wait(lambda: "Block" in browser.get_text("#live"), "the head is told")
    fleet.wait_step(scene.task, 2, "node2")

    def get_height() -> int:
        return int(browser.get_text("#card-head").replace(",", "") or 0)

    first = get_height()
    browser.wait(lambda: get_height() > first, "the head moves")
    browser.wait(lambda: int(browser.get_text("#card-final").replace(",", "") or 0) > 0, "a block is final")
    assert browser.run("return window.notReloaded") is True
    assert browser.find("#dot").get_attribute("class") == "dot good"
    browser.check_quiet()


def test_a_task_page_grows_while_it_is_mined(scene: Scene) -> None:
    browser, fleet = scene.browser, scene.fleet
    browser.go(f"#/tasks/{scene.task}")
    browser.run("window.notReloaded = 'task'")
    fleet.wait_complete(scene.task, "node2")
    browser.wait(lambda: "4 of 4" in browser.get_text(), "every milestone is shown", 60)
    browser.wait(
        lambda: len(browser.find_all(".chart .rung.reached")) == 4, "every target is drawn as reached", 60
    )
    browser.wait(lambda: browser.find_all(".preview img"), "the model is shown", 60)
    assert browser.run("return window.notReloaded") == "task"
    loaded = "const i = document.querySelector('.preview img'); return i.complete && i.naturalWidth"
    assert browser.wait(lambda: browser.run(loaded), "the picture is there") == 588
    text = browser.get_text()
    openings = [o for o in fleet.get_openings("node2", scene.task) if o.kind == "loss"]
    assert len(browser.find_all(".chart .point")) == len(openings)
    for name in (
        "ε spent",
        "Private loss before",
        "Confirmed by",
        "Gradients opened",
        "ciphertexts",
        "per-patch",
    ):
        assert name in text, name
    assert "of 200 stake" in text or "stake" in text
    browser.check_quiet()


def test_what_a_task_calls_itself_stays_text(scene: Scene) -> None:
    browser = scene.browser
    for place in ("#/", "#/tasks", f"#/tasks/{scene.task}", "#/validators", f"#/search?q={scene.task}"):
        browser.go(place)
        browser.wait(lambda: HOSTILE in browser.get_text(), f"the title at {place}")
        assert not browser.find_all("main script, img[src='x']")
        assert browser.driver.title != "taken"
    browser.check_quiet()


def test_every_page_can_be_clicked_to(scene: Scene) -> None:
    """By the links that a reader has; from lists to what they list."""
    browser = scene.browser
    browser.open("#/")
    for name in (
        "Blocks",
        "Tasks",
        "Validators",
        "Accounts",
        "Inference",
        "Federations",
        "Committees",
        "Peers",
        "Overview",
    ):
        link = next(item for item in browser.find_all("nav a") if item.text == name)
        link.click()
        browser.wait(lambda name=name: browser.get_text("h1") == name, f"{name} is shown")
        browser.wait_page()
        assert browser.find("nav a[aria-current=page]").text == name
        assert browser.driver.title.startswith(name)
    browser.click("main a[href='#/mempool']")
    browser.wait(lambda: browser.get_text("h1") == "Mempool", "the mempool is shown")
    browser.go("#/blocks")
    browser.click("main td a.badge")
    browser.wait(lambda: browser.get_text("h1") == HOSTILE, "a work block leads to its task")
    browser.wait_page()
    browser.click("main section:nth-of-type(3) td[data-label=Block] a")
    browser.wait(lambda: browser.get_text("h1").startswith("Block "), "the block of a milestone is shown")
    browser.wait_page()
    assert "Loss opening" in browser.get_text()
    browser.click("main a[rel=prev]")
    browser.wait(lambda: "Transactions" in browser.get_text(), "the block before is shown")
    browser.wait_page()
    browser.go(f"#/tasks/{scene.task}")
    browser.click("main td[data-label=Transaction] a")
    browser.wait(lambda: browser.get_text("h1") == "Contribution", "a transaction is shown")
    browser.wait_page()
    assert "final" in browser.get_text()
    browser.click("main dd a[href^='#/accounts/']")
    browser.wait(lambda: "Merkle proof" in browser.get_text(), "its sender's account is shown")
    browser.driver.back()
    browser.wait(lambda: browser.get_text("h1") == "Contribution", "back leads back")
    browser.wait_page()
    browser.check_quiet()


def test_search_finds_heights_hashes_addresses_and_tasks(scene: Scene) -> None:
    browser, fleet = scene.browser, scene.fleet
    block = next(block for block in fleet.get_head_chain("node2") if block.transactions)
    wanted = {
        "1": "Block 1",
        block.hash: f"Block {block.header.height}",
        block.transactions[0].id: None,
        f"0x{fleet.get_address('node1').upper()}": "Account",
        scene.task: HOSTILE,
    }
    browser.open("#/")
    for text, heading in wanted.items():
        field = browser.find("#query")
        field.clear()
        field.send_keys(text + Keys.ENTER)
        if heading is None:
            browser.wait(lambda: "Payload" in browser.get_text(), f"{text} is found")
        else:
            browser.wait(
                lambda heading=heading: browser.get_text("h1").startswith(heading), f"{text} is found"
            )
    for text, words in (("999999999", "Nothing of this name"), ("what is this", "64 hexadecimal digits")):
        browser.find("#query").clear()
        browser.find("#query").send_keys(text + Keys.ENTER)
        browser.wait(lambda words=words: words in browser.get_text(), f"{text!r} is answered in words")
    browser.check_quiet()


def test_what_is_not_there_is_said_in_words(scene: Scene) -> None:
    browser = scene.browser
    browser.open("#/nothing")
    assert "no page of this address" in browser.get_text()
    browser.check_quiet()
    for place, words in (
        (f"#/tasks/{'0' * 64}", "No task"),
        (f"#/transactions/{'0' * 64}", "never seen here"),
        ("#/blocks/zzz", "Expected a block's hash"),
        ("#/blocks/99999999", "No block"),
        (f"#/federations/{'0' * 64}", "No federation"),
        (f"#/inference/jobs/{'0' * 64}", "No job"),
        (f"#/committees/{'0' * 64}", "No ceremony"),
    ):
        browser.go(place)
        assert words in browser.get_text("[role=alert]"), browser.get_text()
        assert browser.find("[data-action=retry]").text == "Try again"
    browser.driver.get_log("browser")  # type: ignore[no-untyped-call] # the 404s that were asked for


def test_it_can_be_used_by_keyboard_alone(scene: Scene) -> None:
    browser = scene.browser
    browser.open("#/blocks")

    def press(*keys: str) -> None:
        browser.driver.switch_to.active_element.send_keys(*keys)

    def get_focus() -> str:
        return str(browser.run("return document.activeElement.innerText || document.activeElement.id"))

    browser.find("body").send_keys(Keys.TAB)
    assert get_focus() == "Skip to content"
    assert browser.find(".skip").location["y"] >= 0
    press(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    press(Keys.TAB)
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.open("#/blocks")
    seen = []
    for _ in range(7):
        press(Keys.TAB)
        seen.append(get_focus())
    assert seen == ["Skip to content", "bmif", "query", "Search", "Dark", "Overview", "Blocks"]
    press(Keys.TAB)
    press(Keys.ENTER)
    browser.wait(lambda: browser.get_text("h1") == "Tasks", "Enter follows the link")
    browser.wait_page()
    assert browser.run("return document.activeElement.tagName") == "H1"
    browser.check_quiet()


def test_a_refresh_takes_neither_focus_nor_what_is_unfolded(scene: Scene) -> None:
    browser = scene.browser
    browser.open(f"#/tasks/{scene.task}")
    browser.click("details summary")
    browser.run("document.querySelector('details summary').focus()")
    browser.resize(700)
    width = "return Number(document.querySelector('.chart').getAttribute('width'))"
    browser.wait(lambda: int(str(browser.run(width))) < 700, "it is drawn anew")
    assert browser.run("return document.querySelector('details').open") is True
    assert browser.run("return document.activeElement.tagName") == "SUMMARY"
    browser.resize(1280)


def test_hashes_can_be_copied(scene: Scene) -> None:
    browser = scene.browser
    browser.open(f"#/tasks/{scene.task}")
    button = browser.find(f"[data-copy='{scene.task}']")
    assert button.accessible_name.startswith("Copy task id")
    button.click()
    browser.wait(
        lambda: "Copied" in browser.get_text("#announce") or browser.find_all(".copy.done"), "it is copied"
    )
    assert browser.find(f"main code[title='{scene.task}']").text == f"{scene.task[:8]}…{scene.task[-6:]}"
    title = browser.find("main time").get_attribute("title")
    assert title
    assert any(character.isdigit() for character in title)


@dataclass(frozen=True, slots=True)
class Stage:
    """A node that plays what a test wants, behind the real application in a thread of its own."""

    node: FakeNode
    url: str
    app: web.Application
    loop: asyncio.AbstractEventLoop

    def play(self, act: Coroutine[None, None, None]) -> None:
        """Run on the application's loop, to the end."""
        asyncio.run_coroutine_threadsafe(act, self.loop).result(30)


@contextmanager
def serve(directory: Path) -> Iterator[Stage]:
    """The real application over a node that has a job and a federation, whose making would take minutes."""
    node = FakeNode(directory)
    give_model(node)
    config = build_config(directory).model_copy(update={"api": ApiSettings(max_event_streams=100)})
    loop = asyncio.new_event_loop()
    app = build_public_app(node, config)
    runner = web.AppRunner(app)

    async def begin() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Stage(node, f"http://127.0.0.1:{port}", app, loop)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_jobs_and_federations_have_pages(scene: Scene, tmp_path: Path) -> None:
    with serve(tmp_path) as stage:
        browser = Browser(scene.browser.driver, stage.url)
        browser.open("#/inference")
        browser.click("main a[href^='#/inference/jobs/']")
        browser.wait(lambda: "Receipt" in browser.get_text(), "the job is shown")
        text = browser.get_text()
        assert "agrees" in text
        assert "differs" in text
        check_accessible(browser)
        browser.shoot("job-light", 1280)
        check_widths(browser, "job")
        browser.go("#/inference")
        browser.click("main td[data-label=Model] a")
        browser.wait(lambda: browser.get_text("h1") == "pneumonia", "the model is shown")
        browser.wait_page()
        check_widths(browser, "model")
        browser.go("#/inference")
        check_widths(browser, "inference-jobs")
        browser.go("#/federations")
        browser.click("main td[data-label=Federation] a")
        browser.wait(lambda: "accepted" in browser.get_text(), "the federation and its rounds are shown")
        check_accessible(browser)
        browser.shoot("federation-light", 1280)
        check_widths(browser, "federation")
        browser.check_quiet()


def test_committees_have_pages(scene: Scene, tmp_path: Path) -> None:
    """How far a ceremony is, and what comes with a block; a renewal leads to what it renews."""
    with serve(tmp_path) as stage:
        browser, node = Browser(scene.browser.driver, stage.url), stage.node
        browser.open("#/committees")
        browser.click("main td[data-label=Ceremony] a")
        browser.wait(lambda: browser.get_text("h1") == "cardiac", "the ceremony is shown")
        browser.wait_page()
        text = browser.get_text()
        for words in ("2 of 2 members together", "1 of 5", "shares: members commit", "waited for", "done"):
            assert words in text, words
        assert "Nobody has confirmed the keys yet" in text
        check_accessible(browser)
        browser.shoot("committee-light", 1280)
        check_widths(browser, "committee")

        async def finish() -> None:
            node.finish_ceremony()
            header = node.grow().block.header
            data = {"height": header.height, "time": header.time, "hash": "", "state_root": ""}
            node.events.publish(EventKind.HEAD, header.time, data)

        stage.play(finish())
        browser.wait(lambda: "Shares renewed by" in browser.get_text(), "the page follows the chain")
        assert "ready" in browser.get_text()
        assert len(browser.find_all("main section:last-of-type tbody tr")) == 2
        check_widths(browser, "committee-ready")
        browser.click("main dd a[href^='#/committees/']")
        browser.wait(lambda: browser.get_text("h1") == "cardiac, anew", "its renewal is shown")
        browser.wait_page()
        browser.open("#/committees")
        assert "in use" in browser.get_text()
        check_widths(browser, "committees")
        browser.check_quiet()


def test_a_node_that_is_behind_is_said_to_be(scene: Scene, tmp_path: Path) -> None:
    with serve(tmp_path) as stage:
        detail = "syncing: 40 blocks behind the best peer (at most 3)"
        stage.node.ready = Readiness(False, (detail,), (Criterion("lag", False, detail),))
        browser = Browser(scene.browser.driver, stage.url)
        browser.open("#/")
        browser.wait(lambda: detail in browser.get_text("#banner"), "the banner says so")
        assert browser.find("#banner").get_attribute("role") == "status"
        check_accessible(browser)
        browser.driver.get_log("browser")  # type: ignore[no-untyped-call] # the 503 of /readyz


def test_what_was_missed_is_read_again(scene: Scene, tmp_path: Path) -> None:
    """The stream breaks and more happens than the node keeps: it tells of the gap, the page reads anew."""
    with serve(tmp_path) as stage:
        browser, node = Browser(scene.browser.driver, stage.url), stage.node
        browser.open("#/")
        browser.run("window.notReloaded = 'gap'")
        browser.wait(lambda: browser.find("#dot").get_attribute("class") == "dot good", "it is live")

        async def tell() -> None:
            header = node.grow().block.header
            data = {"height": header.height, "time": header.time, "hash": "", "state_root": ""}
            node.events.publish(EventKind.HEAD, header.time, data)

        async def lose() -> None:
            await close_streams(stage.app)
            time = node.grow().block.header.time
            for _ in range(40):
                node.events.publish(EventKind.VERDICT, time, {"task": ""})

        height = len(node.records)
        stage.play(tell())
        browser.wait(lambda: browser.get_text("#card-head") == str(height), "an event moves the head")
        stage.play(lose())
        browser.wait(lambda: browser.get_text("#card-head") == str(height + 1), "the gap is read again")
        assert browser.run("return window.notReloaded") == "gap"


def test_both_themes_and_every_width_are_legible(scene: Scene, tmp_path: Path) -> None:
    """On every page: names, headings, tables, contrast; nothing sticks out at 360 px."""
    browser, fleet = scene.browser, scene.fleet
    chain = fleet.get_head_chain("node2")
    transaction = next(block.transactions[0].id for block in chain if block.transactions)
    places = (
        *LISTS,
        "#/mempool",
        f"#/tasks/{scene.task}",
        "#/blocks/1",
        f"#/transactions/{transaction}",
        f"#/accounts/{fleet.get_address('node1')}",
        "#/search?q=7777777",
    )
    browser.open("#/")
    for place in places:
        browser.go(place)
        plain = re.sub(r"[0-9a-f]{64}", "one", place)
        name = re.sub(r"[?].*|\W+", "-", plain).strip("-") or "overview"
        for theme in ("dark", "light"):
            browser.prefer("prefers-color-scheme", theme)
            check_accessible(browser)
            browser.shoot(f"{name}-{theme}", 1280)
        check_widths(browser, name)
    browser.check_quiet()


def check_widths(browser: Browser, name: str) -> None:
    """The page that is shown, at every width and with all unfolded: nothing sticks out, all is reached."""
    browser.resize(NARROW)
    for theme in ("dark", "light"):
        browser.prefer("prefers-color-scheme", theme)
        browser.shoot(f"{name}-{NARROW}-{theme}", NARROW)
    browser.run("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    for width in (NARROW, SCROLLING, WIDE):
        browser.resize(width)
        browser.wait(lambda: is_drawn(browser), "it is laid out")
        browser.shoot(f"{name}-{width}-unfolded", width)
        check_narrow(browser, width)
        check_accessible(browser)
    browser.resize(1280)


def is_drawn(browser: Browser) -> bool:
    """Two frames have passed, so that observers of sizes and of what was unfolded have been told."""
    script = "const d = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => d(true)))"
    return bool(browser.driver.execute_async_script(script))  # type: ignore[no-untyped-call]


def test_a_table_that_scrolls_is_scrolled_by_keyboard(scene: Scene) -> None:
    browser = scene.browser
    browser.open("#/blocks")
    # A column that can't be made narrower, whatever the chain holds.
    browser.run(
        "const s = document.styleSheets[0]; s.insertRule('table { min-width: 90rem; }', s.cssRules.length)"
    )
    browser.resize(SCROLLING)
    browser.wait(lambda: is_drawn(browser), "it is laid out")
    place = browser.find(".scroll[tabindex='0'][role='region']")
    assert place.accessible_name == browser.find("caption").get_attribute("textContent")
    browser.run("arguments[0].focus()", place)
    place.send_keys(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.run("return arguments[0].scrollLeft > 0", place), "it has moved")
    # A refresh, as by an event of the chain, leaves the reader where they are.
    browser.run("dispatchEvent(new Event('visibilitychange'))")
    assert browser.run("return document.activeElement === arguments[0]", place)
    browser.resize(1280)


def test_the_theme_is_chosen_and_kept(scene: Scene) -> None:
    browser = scene.browser
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.prefer("prefers-color-scheme", "light")
    browser.open("#/")
    light = browser.run(ground)
    assert browser.find("#theme").accessible_name == "Use the dark theme"
    browser.click("#theme")
    dark = browser.run(ground)
    assert dark != light
    browser.open("#/peers")
    assert browser.run(ground) == dark
    assert json.loads(str(browser.run("return JSON.stringify(localStorage)"))) == {"bmif-theme": "dark"}
    browser.click("#theme")
    assert browser.run(ground) == light
    browser.run("localStorage.clear()")
    browser.prefer("prefers-color-scheme", "dark")
    browser.open("#/")
    assert browser.run(ground) == dark
    browser.prefer("prefers-reduced-motion", "reduce")
    assert browser.run("return getComputedStyle(document.querySelector('main')).animationName") == "none"
    browser.check_quiet()


def test_the_stream_comes_back_after_the_node_was_away(scene: Scene) -> None:
    """Last of all: the node is stopped and started under the open page."""
    browser, fleet = scene.browser, scene.fleet
    browser.open("#/")
    browser.run("window.notReloaded = 'away'")
    browser.wait(lambda: browser.find("#dot").get_attribute("class") == "dot good", "it is live")
    fleet.down("node2")
    browser.wait(lambda: "not live" in browser.get_text("#live"), "the loss of the stream is told")
    browser.wait(
        lambda: "does not answer" in browser.get_text("#banner"), "the banner says that the node is away"
    )
    assert "Latest blocks" in browser.get_text()
    fleet.up("node2")
    browser.wait(lambda: "not live" not in browser.get_text("#live"), "it is live again")
    browser.wait(lambda: browser.get_text("#banner") == "", "the banner goes")
    assert browser.run("return window.notReloaded") == "away"
