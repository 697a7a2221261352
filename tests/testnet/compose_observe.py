"""Waits until the compose testnet's Prometheus scrapes every node and evaluates every rule, or exits with 1.

Standard library only, like `compose_check.py`.
"""

import argparse
import json
import sys
import time
import urllib.parse
import urllib.request

URL = "http://127.0.0.1:9090/api/v1"
NODES = 4


def ask(path: str) -> dict[str, list[dict[str, object]]]:
    """The `data` of Prometheus' answer."""
    with urllib.request.urlopen(f"{URL}/{path}", timeout=5) as answer:
        data: dict[str, list[dict[str, object]]] = json.load(answer)["data"]
    return data


def find_fault() -> str:
    """What is not as it should be; empty when all is well."""
    try:
        targets = ask("targets")["activeTargets"]
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]  # type: ignore[attr-defined]
        query = urllib.parse.urlencode({"query": "bmif_ready == 1"})
        ready = ask(f"query?{query}")["result"]
    except (OSError, ValueError, KeyError) as error:
        return f"no answer: {error}"
    down = [f"{t['scrapeUrl']}: {t['health']} {t['lastError']}" for t in targets if t["health"] != "up"]
    if down or len(targets) != NODES + 1:
        return f"{len(targets)} targets, not up: {down}"
    wrong = [rule["name"] for rule in rules if rule["health"] != "ok"]
    if wrong or not rules:
        return f"{len(rules)} rules, not evaluated: {wrong}"
    return "" if len(ready) == NODES else f"{len(ready)} nodes are ready"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds")
    end = time.monotonic() + parser.parse_args().deadline
    while fault := find_fault():
        if time.monotonic() > end:
            sys.exit(f"Prometheus: {fault}")
        time.sleep(0.5)
    print(f"Prometheus scrapes {NODES} nodes")


if __name__ == "__main__":
    main()
