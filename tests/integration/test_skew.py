"""Whole nodes over TLS, one of them with a wrong clock: it says so, and the others are not misled."""

from pathlib import Path

from consensus.types import Millis
from node.clock import Clock, SystemClock
from node.config import NodeConfig
from node.daemon import Node
from node.readiness import Links, ReadinessJudge
from tests.integration.rig import Rig, wait_until

BEHIND_MS = 6_000
NAMES = ("node1", "node2", "node3")


class WrongClock(SystemClock):
    """The machine's clock as a hand set it."""

    def now_ms(self) -> Millis:
        return Millis(super().now_ms() - BEHIND_MS)


async def test_a_clock_that_is_behind_is_measured_and_named(tmp_path: Path, monkeypatch) -> None:
    rig = Rig.make(tmp_path / "rig", 3)

    def build(config: NodeConfig) -> Node:
        clock: Clock = WrongClock() if config.name == "node3" else SystemClock()
        return Node(config, clock)

    monkeypatch.setattr("tests.integration.rig.Node", build)
    try:
        for name in NAMES:
            await rig.start(name)
        watches = {name: rig.nodes[name].core.skew for name in NAMES}

        def have_all_measured() -> bool:
            skews = [None if watch is None else watch.get_skew() for watch in watches.values()]
            return all(skew is not None and skew.peers == 2 for skew in skews)

        await wait_until(have_all_measured, "each has heard the time of two others")
        wrong, right = watches["node3"], watches["node1"]
        assert wrong is not None
        assert right is not None
        measured = wrong.get_skew()
        assert measured is not None
        assert abs(measured.behind_ms - BEHIND_MS) < 1_000
        assert wrong.is_out_of_step
        assert not right.is_out_of_step
        for name, is_right in (("node1", True), ("node3", False)):
            judged = ReadinessJudge(rig.nodes[name].core).judge(Links(2, 2, 0), None)
            clock = next(item for item in judged.criteria if item.name == "clock")
            assert clock.ok is is_right, clock
    finally:
        await rig.stop()
