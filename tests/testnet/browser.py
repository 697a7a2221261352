"""A real Chromium for tests of pages: what it asked for, what it complained of, what it shows."""

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

T = TypeVar("T")

DEADLINE_S = 120.0
POLL_S = 0.05
EXPECTED = ("/readyz", "ERR_NETWORK_CHANGED", "/preview.png?digest=")
"""A node that is behind on a busy machine says so by a status; containers beside it change the network; a
model may be overtaken by the next between the page's reading of its digest and the picture's."""
SHOTS = "BMIF_SHOTS"
"""Names a folder that pictures of the pages go to."""
REMEDY = "apt-get install chromium chromium-driver"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


def find_program(*names: str) -> str:
    """The path of the first that is installed."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise AssertionError(f"{names[0]} is not installed: {REMEDY}")


@dataclass(slots=True)
class Browser:
    """One window; every wait has a deadline and says what was awaited."""

    driver: webdriver.Chrome
    base: str
    complaints: list[str] = field(default_factory=list)

    def open(self, place: str) -> None:
        """Load the explorer anew at a place such as `#/tasks`."""
        self.driver.get("about:blank")

        def load() -> bool:
            # The browser gives up a page when the machine's network changes, as containers make it do.
            self.driver.get(f"{self.base}/{place}")
            return str(self.run("return location.href")).startswith(self.base)

        self.wait(load, f"{place} is loaded")
        self.wait_page()

    def go(self, place: str) -> None:
        """Follow a link to a place, within the page that is loaded."""
        self.run("location.hash = arguments[0]", place)
        self.wait_page()

    def wait_page(self) -> None:
        """Until the page has its data."""
        self.wait(
            lambda: bool(
                self.run(
                    "const m = document.querySelector('main');"
                    "return m && m.querySelector('h1') && !m.hasAttribute('aria-busy')"
                    "&& !m.querySelector('.loading')"
                )
            ),
            "the page is loaded",
        )

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def wait(self, read: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        """The first answer that holds."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                found = read()
            except StaleElementReferenceException:
                found = None  # type: ignore[assignment]
            if found:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {deadline_s:.0f} s; shown:\n{self.get_text()}")
            time.sleep(POLL_S)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def get_text(self, selector: str = "main") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def click(self, selector: str) -> None:
        """By the element's own click, where a refresh between finding and pressing does no harm."""
        self.wait(
            lambda: self.run(
                "const e = document.querySelector(arguments[0]); if (e) e.click(); return Boolean(e)",
                selector,
            ),
            f"{selector} can be pressed",
        )

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, name: str, value: str) -> None:
        """What the system says of the reader's wishes: `prefers-color-scheme`, `prefers-reduced-motion`."""
        features = {"features": [{"name": name, "value": value}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)

    def get_asked(self) -> set[str]:
        """Addresses that the page has loaded since it was opened."""
        script = "return performance.getEntriesByType('resource').map(e => e.name)"
        return {str(name) for name in list(self.run(script))}  # type: ignore[call-overload]

    def check_quiet(self) -> None:
        """The console has no errors, and nothing came from elsewhere."""
        logged = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        errors = [
            entry["message"]
            for entry in logged
            if entry["level"] in ("SEVERE", "WARNING")
            and not any(part in entry["message"] for part in EXPECTED)
        ]
        assert not errors, errors
        foreign = {name for name in self.get_asked() if not name.startswith(self.base)}
        assert not foreign

    def shoot(self, name: str, width: int) -> None:
        """A picture of the whole page, where somebody wants to look at pages."""
        folder = os.environ.get(SHOTS)
        if folder is None:
            return
        height = self.run("return Math.min(document.documentElement.scrollHeight, 5000)")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        found = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


@contextmanager
def run_browser(base: str) -> Iterator[Browser]:
    """A window for a node's address; its process is gone afterwards."""
    options = Options()
    options.binary_location = find_program("chromium", "chromium-browser", "google-chrome")
    for argument in ARGUMENTS:
        options.add_argument(argument)  # type: ignore[no-untyped-call]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})  # type: ignore[no-untyped-call]
    service = Service(find_program("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver, base)
    finally:
        driver.quit()
