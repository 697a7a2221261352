"""A testnet that mines, watched by a real Prometheus with the shipped configuration: every query of the
dashboard returns data, every alert rule can be evaluated, and a dump of a node holds none of its secrets.
"""

import base64
import json
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import JsonValue

from tests.testnet.fleet import Fleet, Recipe, find_free_ports, poll, run_fleet

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "observability"
DASHBOARD = SHIPPED / "grafana" / "dashboards" / "bmif.json"
NAMES = ("node1", "node2", "node3", "node4")
RECIPE = Recipe(("0.036:1000", "0.000001:500"), steps=40, learning_rate=0.08)
"""The second rung is out of reach, so that the task stays open while it is watched."""
LOGGED = {"log": {"level": "debug", "access": True}}
"""As much as a node ever records: none of it may be a secret."""
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
MAX_SERIES = 2_000
"""Of one node: what peers or clients send must not add to them."""


def find_program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"{name} is not installed; remedy: apt-get install prometheus (Debian's package has both)"
        )
    return found


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server's API."""

    url: str

    def get(self, path: str, **query: str) -> JsonValue:
        """The `data` of an answer; fails with what the server says of a query that is wrong."""
        text = f"?{urllib.parse.urlencode(query)}" if query else ""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{text}", timeout=10) as reply:
                data: JsonValue = json.load(reply)["data"]
                return data
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {query}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[float]:
        """The values that an instant query gives now, without those that are no number."""
        data = self.get("query", query=expression)
        assert isinstance(data, dict)
        results = data["result"]
        assert isinstance(results, list)
        if data["resultType"] == "scalar":
            return [float(str(results[1]))]
        values = [float(str(item["value"][1])) for item in results]  # type: ignore[index, call-overload]
        return [value for value in values if value == value]

    def count_up(self) -> int:
        """Nodes that were scraped; 0 while the server starts."""
        try:
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=10).close()
        except OSError:
            return 0
        return sum(value == 1 for value in self.query('up{job="bmif"}'))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with run_fleet(tmp_path_factory.mktemp("watched") / "fleet", 4, 2, NAMES, LOGGED) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The shipped files but for the targets, which are this fleet's nodes."""
    program = find_program("prometheus")
    home = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(SHIPPED, home / "configs")
    (home / "configs" / "targets" / "testnet.yaml").unlink()
    urls = [fleet.testnet.get_api_url(node) for node in fleet.testnet.select(NAMES)]
    targets = [{"targets": [url.removeprefix("http://") for url in urls]}]
    (home / "configs" / "targets" / "fleet.yaml").write_text(yaml.safe_dump(targets), encoding="utf-8")
    port = find_free_ports(1)
    command = [
        program,
        f"--config.file={home / 'configs' / 'prometheus.yaml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")

        def is_scraping() -> bool:
            assert process.poll() is None, (home / "log").read_text(encoding="utf-8")
            return found.count_up() == len(NAMES)

        poll(is_scraping, "Prometheus scrapes all nodes")
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def task(fleet: Fleet, prometheus: Prometheus) -> str:
    """A task that is being mined while Prometheus looks on, two steps in."""
    found = fleet.publish(RECIPE)
    fleet.wait_step(found, 2, "node1")
    return found


def list_queries() -> list[tuple[str, str]]:
    """Every panel's title and query, with the dashboard's variables filled in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            found.append((panel["title"], query))
    return found


@pytest.mark.slow
def test_every_query_of_the_dashboard_returns_data(prometheus: Prometheus, task: str) -> None:
    queries = list_queries()
    assert len(queries) > 50
    left = dict.fromkeys(queries)

    def read() -> bool:
        for title, query in list(left):
            if prometheus.query(query):
                del left[title, query]
        return not left

    try:
        poll(read, "every panel has data", deadline_s=120)
    except TimeoutError:
        pytest.fail(f"without data: {list(left)}")
    assert prometheus.query(f'bmif_task_loss{{task="{task}"}}')
    print(f"{len(queries)} queries returned data")


@pytest.mark.slow
def test_every_alert_rule_is_evaluated_and_none_fires(prometheus: Prometheus, task: str) -> None:
    names: set[str] = set()
    groups = yaml.safe_load((SHIPPED / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        prometheus.query(rule["expr"])
        # An expression of a name that nobody exports is never true.
        names |= set(re.findall(r"\b(?:bmif|process)_[a-z_]+\b", rule["expr"]))
    assert len(names) > 20
    missing = sorted(name for name in names if not prometheus.query(f"count({name})"))
    assert not missing

    def read() -> bool:
        data = prometheus.get("rules")
        assert isinstance(data, dict)
        loaded = [rule for group in data["groups"] for rule in group["rules"]]  # type: ignore[union-attr, index, call-overload]
        assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules}  # type: ignore[index, call-overload]
        return all(rule["health"] == "ok" for rule in loaded)  # type: ignore[index, call-overload]

    poll(read, "every rule is evaluated")
    assert not prometheus.query('ALERTS{alertstate="firing"}')


@pytest.mark.slow
def test_a_nodes_series_are_well_named_and_bounded(fleet: Fleet, prometheus: Prometheus, task: str) -> None:
    url = fleet.testnet.get_api_url(fleet.testnet.select(("node1",))[0])
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        text = reply.read()
    checked = subprocess.run(
        [find_program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()
    documented = (ROOT / "docs" / "OBSERVABILITY.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^# TYPE (bmif_\w+) ", text.decode(), re.MULTILINE))
    # Counters and histograms say when they began, too.
    names = {name for name in names if not name.endswith("_created")}
    assert len(names) > 50
    assert not [name for name in sorted(names) if name not in documented]
    (series,) = prometheus.query("max(scrape_samples_scraped)")
    print(f"{series:.0f} series at most")
    assert series < MAX_SERIES


@pytest.mark.slow
def test_alert_rules_fire_when_they_should() -> None:
    tests = ROOT / "tests" / "observability" / "alerts_test.yaml"
    checked = subprocess.run(
        [find_program("promtool"), "test", "rules", str(tests)], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()
    tested = tests.read_text(encoding="utf-8")
    for name in re.findall(r"alert: (\w+)", (SHIPPED / "alerts.yaml").read_text(encoding="utf-8")):
        assert name in tested, f"{name} is never seen to fire"


SECRETS = ("account.key", "tls.key", "operator.token", "secret.key", "noise.key", "verdict.key")


def find_secrets(home: Path) -> dict[str, bytes]:
    """Every secret file of a node's directory; of PEM keys also the key itself."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.name in SECRETS:
            data = path.read_bytes()
            found[str(path.relative_to(home))] = data.strip()
            if data.startswith(b"-----BEGIN"):
                key = load_pem_private_key(data, None)
                raw = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
                found[f"{path.name} in DER"] = raw
                found[f"{path.name}, its last bytes"] = raw[-32:]
    return found


def write_forms(secret: bytes) -> set[bytes]:
    """A secret as it might leak: raw, hexadecimal, base64, and pieces of it where it is long."""
    starts = range(0, min(len(secret), 4_096), max(24, len(secret) // 64))
    pieces = {secret[start : start + 24] for start in starts} - {b""}
    pieces = {piece for piece in pieces if len(set(piece)) > 8 and not piece.startswith(b"-----")}
    forms = set()
    for piece in pieces:
        forms |= {piece, piece.hex().encode(), piece.hex().upper().encode()}
        # However the piece lies in what is encoded, one of three shifts shows its middle.
        for shift in range(3):
            encoded = base64.b64encode(bytes(shift) + piece)[4:-4]
            forms |= {encoded, encoded.replace(b"+", b"-").replace(b"/", b"_")}
    return forms


def read_dump(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            member.name: data.read()
            for member in archive
            if (data := archive.extractfile(member)) is not None
        }


@pytest.mark.slow
def test_a_dump_holds_no_secret(fleet: Fleet, task: str, tmp_path: Path) -> None:
    home = fleet.testnet.get_directory("node1")
    secrets = find_secrets(home)
    names = {Path(name).name.partition(" in ")[0].partition(",")[0] for name in secrets}
    assert names >= {"account.key", "tls.key", "operator.token", "secret.key", "noise.key"}
    running, stopped = tmp_path / "running.tar.gz", tmp_path / "stopped.tar.gz"
    fleet.bmif("debug", "dump", "-o", str(running), *fleet.config("node1"))
    fleet.down("node1")
    fleet.bmif("debug", "dump", "-o", str(stopped), *fleet.config("node1"))
    for dump, is_running in ((running, True), (stopped, False)):
        members = read_dump(dump)
        assert json.loads(members["bmif-debug/manifest.json"])["running"] is is_running
        assert len(members) == (13 if is_running else 7), sorted(members)
        everything = b"\n".join([*(name.encode() for name in members), *members.values()])
        assert len(everything) > 5_000
        for name, secret in secrets.items():
            for form in write_forms(secret):
                assert form not in everything, f"{name} is in {dump.name}"
        assert str(home).encode() not in everything
    recorded = fleet.read_log("node1").encode()
    assert b"/v1/operator/transactions" in recorded
    for name, secret in secrets.items():
        assert not [form for form in write_forms(secret) if form in recorded], f"{name} is in the log"
    # The search itself finds what is there.
    token = secrets[next(name for name in secrets if name.endswith("operator.token"))]
    assert any(form in base64.b64encode(b"x" + token) for form in write_forms(token))
