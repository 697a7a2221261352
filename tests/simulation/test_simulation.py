"""A few dozen seeds of the simulator, that a seed is one run, and that liars with a third are convicted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.errors import Reason
from tests.simulation.batch import Summary, summarise
from tests.simulation.run import simulate
from tests.simulation.scenario import build_attack, build_scenario

ROOT = Path(__file__).parents[2]
CHUNK = 8


def require_clean(summary: Summary) -> None:
    print(summary.format())
    assert not summary.failures, summary.format()


@pytest.mark.parametrize("first", range(0, 24, CHUNK))
def test_random_runs_hold(first: int) -> None:
    require_clean(summarise(range(first, first + CHUNK)))


@pytest.mark.slow
def test_a_hundred_validators_hold() -> None:
    require_clean(summarise([249]))


def test_a_third_of_liars_that_finalise_two_chains_are_convicted() -> None:
    summary = summarise(range(8), "attack")
    require_clean(summary)
    assert summary.conflicts >= 4
    assert summary.least_guilty >= 1 / 3


def test_scenarios_stay_below_a_third_and_attacks_do_not() -> None:
    for seed in range(200):
        scenario = build_scenario(seed)
        assert 3 * scenario.count_byzantine_stake() < sum(scenario.stakes)
        attack = build_attack(seed)
        assert sum(attack.stakes) <= 3 * attack.count_byzantine_stake() <= 2 * sum(attack.stakes)


def test_a_seed_is_one_run_in_every_process() -> None:
    """Hashes of strings differ between processes; the run does not."""
    code = "from tests.simulation.run import simulate; print(simulate(7).digest)"
    digests = {simulate(7).digest}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        digests.add(subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip())
    assert len(digests) == 1


def test_the_runs_reach_what_they_are_about() -> None:
    """Together a few go through the life of tasks, changes of set, outages, evidence and refusals."""
    summary = summarise(range(48, 56))
    require_clean(summary)
    wanted = {"work blocks", "rungs settled", "validators jailed", "changes of set", "partitions", "crashes"}
    assert wanted <= set(summary.events)
    assert {Reason.B7_TURN, Reason.B8_VOTES, Reason.EVIDENCE_KNOWN} <= set(summary.reasons)
