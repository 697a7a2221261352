"""Waits by REST until every node of the compose testnet is ready and all stand on one head, or exits with 1.

Standard library only: it looks at the testnet from outside, as any client would.
"""

import argparse
import json
import sys
import time
import urllib.request
from dataclasses import dataclass

PORTS = (8100, 8103, 8106, 8109)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one node says it stands."""

    port: int
    ready: bool
    height: int
    head: str
    state_root: str
    peers: int
    detail: str


def get_standing(port: int) -> Standing:
    """A node's own word; a node that does not answer stands nowhere."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=5) as answer:
            status = json.load(answer)
    except (OSError, ValueError) as error:
        return Standing(port, False, -1, "", "", 0, f"no answer: {error}")
    head = status["head"]
    detail = "; ".join(status["reasons"]) or "ready"
    return Standing(
        port, status["ready"], head["height"], head["hash"], head["state_root"], status["peers"], detail
    )


def agree(standings: list[Standing], min_height: int) -> bool:
    """All ready, on one head of at least that height, each connected to every other."""
    heads = {(s.head, s.state_root) for s in standings}
    return (
        len(heads) == 1
        and all(s.ready and s.height >= min_height for s in standings)
        and all(s.peers >= len(standings) - 1 for s in standings)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds")
    parser.add_argument("--min-height", type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.deadline
    while True:
        standings = [get_standing(port) for port in PORTS]
        if agree(standings, arguments.min_height):
            print(f"{len(PORTS)} nodes at height {standings[0].height}, head {standings[0].head}")
            return
        if time.monotonic() > end:
            for s in standings:
                print(f"port {s.port}: height {s.height}, head {s.head}, {s.peers} peers, {s.detail}")
            sys.exit("the nodes do not agree")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
