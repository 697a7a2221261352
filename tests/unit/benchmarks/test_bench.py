"""The benchmarks' own parts: tables, spreads, made chains and simulated miners are what they say."""

from pathlib import Path

import pytest

from benchmarks.bench import EXPLANATION, PARTS
from benchmarks.chain_speed import measure_blocks, measure_transfers
from benchmarks.figures import Figure, compute_quantile, describe_spread, format_table
from benchmarks.lease_scaling import simulate_steps


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 21)]
    assert compute_quantile(values, 0.95) == 19.0
    assert compute_quantile(values, 0.5) == 10.0
    assert compute_quantile([3.0], 0.95) == 3.0
    assert describe_spread([0.001, 0.002, 0.003]) == "2.0 ms median, 3.0 ms p95"


def test_the_table_says_what_holds() -> None:
    rows = format_table([Figure("a", "1", "2", False), Figure("bb", "3"), Figure("c", "4", "4", True)])
    assert len({len(line) for line in rows.splitlines()}) == 1
    assert [line.split("|")[5].strip() for line in rows.splitlines()[2:]] == ["no", "", "yes"]


def test_the_page_takes_a_setting_and_a_table() -> None:
    page = EXPLANATION.format(setting="here", table="there")
    assert "here" in page
    assert "there" in page
    assert len(PARTS) == len(set(PARTS))


def test_made_blocks_are_judged_and_stored(tmp_path: Path) -> None:
    times = measure_blocks(tmp_path / "blocks", milestones=2, carriers=3)
    assert len(times.work.walls) == 2
    assert len(times.carrier.walls) == 3
    transfers = measure_transfers(tmp_path / "transfers", 40)
    assert transfers.transfers == 40
    assert transfers.follow.wall_s > 0


@pytest.mark.parametrize(("miners", "batches"), [(1, 4), (3, 2), (4, 1)])
async def test_simulated_miners_share_a_step(tmp_path: Path, miners: int, batches: int) -> None:
    """Four batches by so many miners take as long as the most that one of them has to do."""
    assert await simulate_steps(tmp_path, miners, 2.0, 1) == pytest.approx(2.0 * batches)
