"""The files of the observability profile: pinned, hardened, and of metrics that are documented."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "observability"
DASHBOARD = CONFIGS / "grafana" / "dashboards" / "bmif.json"
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
METRIC = re.compile(r"\bbmif_[a-z_]+\b")


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_watchers_are_pinned_and_hardened_like_nodes(name: str) -> None:
    watcher, node = SERVICES[name], SERVICES["node1"]
    assert watcher["profiles"] == ["observability"]
    for setting in ("read_only", "cap_drop", "security_opt", "tmpfs"):
        assert watcher[setting] == node[setting]
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", watcher["image"])
    assert all(port.startswith("127.0.0.1:") for port in watcher["ports"])
    assert all(volume.endswith(":ro") for volume in watcher["volumes"] if volume.startswith("./"))


def test_what_is_watched_are_the_testnets_nodes() -> None:
    groups = yaml.safe_load((CONFIGS / "targets" / "testnet.yaml").read_text(encoding="utf-8"))
    targets = {target for group in groups for target in group["targets"]}
    ports = {name: node["ports"][0].rpartition(":")[2] for name, node in SERVICES.items() if "node" in name}
    assert targets == {f"{name}:{port}" for name, port in ports.items()}


def test_every_metric_that_is_asked_for_is_documented() -> None:
    documented = set(METRIC.findall((ROOT / "docs" / "OBSERVABILITY.md").read_text(encoding="utf-8")))
    for path in (DASHBOARD, CONFIGS / "alerts.yaml"):
        asked = {re.sub("_(bucket|sum|count)$", "", name) for name in METRIC.findall(path.read_text("utf-8"))}
        assert len(asked) > 20
        assert asked <= documented | {"bmif_reorg_depth_blocks"}, asked - documented


def test_the_dashboard_is_well_formed() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    sources = (CONFIGS / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text("utf-8")
    (source,) = yaml.safe_load(sources)["datasources"]
    for panel in panels:
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == source["uid"]
            assert target["legendFormat"]


def test_every_alert_says_what_to_do() -> None:
    groups = yaml.safe_load((CONFIGS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "remedy"}
