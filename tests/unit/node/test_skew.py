"""Clock skew: estimated from peers, told from steps, robust against a lying minority."""

import logging

import pytest

from consensus.types import Millis
from node.clock import ManualClock
from node.skew import LOOK_S, REPEAT_S, OffsetSampler, SkewWatch, estimate


class SteppedClock(ManualClock):
    """A clock whose wall time somebody sets."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by_ms = 0

    def now_ms(self) -> Millis:
        return Millis(super().now_ms() + self.set_by_ms)


def build(offsets: list[float], limit_ms: int = 2_000) -> tuple[SteppedClock, SkewWatch]:
    clock = SteppedClock()
    return clock, SkewWatch(clock, lambda: offsets, offsets.clear, limit_ms)


def test_a_sample_counts_from_the_middle_of_its_exchange() -> None:
    sampler = OffsetSampler()
    assert sampler.offset_ms is None
    sampler.add(Millis(10_100), Millis(10_000), 0.2)
    assert sampler.offset_ms == 200
    sampler.add(Millis(99_999), Millis(10_000), 1.5)
    assert sampler.offset_ms == 200
    for _ in range(3):
        sampler.add(Millis(10_000), Millis(10_000), 0.0)
    assert sampler.offset_ms == 0
    sampler.forget()
    assert sampler.offset_ms is None


def test_less_than_half_of_the_peers_move_nothing() -> None:
    assert estimate([]) is None
    for lie in (-1e9, 1e9):
        for honest in (3, 4):
            skew = estimate([*(float(i) for i in range(honest)), lie])
            assert skew is not None
            assert 0 <= skew.behind_ms <= honest
    two = estimate([5.0, 1e9])
    assert two is not None
    assert two.behind_ms == 5.0


def test_it_is_named_once_in_a_while_until_it_is_right(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    offsets = [1_200.0, 1_300.0, 1_250.0]
    clock, watch = build(offsets)
    watch.look()
    assert "1.250 s behind the median of 3 peers" in caplog.text
    assert not watch.is_out_of_step
    watch.look()
    assert len(caplog.records) == 1
    clock.advance(REPEAT_S)
    watch.look()
    assert len(caplog.records) == 2
    offsets[:] = [-20.0, 10.0, 0.0]
    watch.look()
    watch.look()
    assert len(caplog.records) == 3
    assert "right again" in caplog.text
    assert clock.now_ms() == ManualClock().now_ms() + REPEAT_S * 1000


def test_who_is_beyond_the_turn_is_out_of_step_by_two_peers_at_least() -> None:
    offsets = [-5_000.0]
    _, watch = build(offsets)
    assert not watch.is_out_of_step
    offsets.append(-6_000.0)
    assert watch.is_out_of_step
    skew = watch.get_skew()
    assert skew is not None
    assert skew.describe() == "5.000 s ahead of the median of 2 peers"


@pytest.mark.parametrize(("step_ms", "where"), [(-3_600_000, "back by 3600"), (7_000, "forward by 7.000")])
def test_a_step_is_named_and_old_samples_forgotten(
    caplog: pytest.LogCaptureFixture, step_ms: int, where: str
) -> None:
    offsets = [0.0, 0.0]
    clock, watch = build(offsets)
    clock.advance(LOOK_S)
    watch.look()
    assert not caplog.records
    clock.set_by_ms += step_ms
    clock.advance(LOOK_S)
    watch.look()
    assert where in caplog.text
    assert watch.get_skew() is None
    clock.advance(LOOK_S)
    watch.look()
    assert len(caplog.records) == 1
