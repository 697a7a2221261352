"""The attacks of `make adversary`, smaller; what other tests do, too, or takes ciphertexts is slow."""

from pathlib import Path

import pytest

from benchmarks.adversary.__main__ import main
from benchmarks.adversary.profile import Outcome, Profile, Run, Scene, note, require
from benchmarks.adversary.report import Entry, format_summary
from benchmarks.adversary.suite import PROFILES

SEED = 20_261_122


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(
            profile, id=profile.name, marks=[pytest.mark.slow] if profile.is_slow or profile.covered else []
        )
        for profile in PROFILES
    ],
)
async def test_an_attack_gains_nothing_that_it_must_not(profile: Profile, tmp_path: Path) -> None:
    outcome = await profile.run(Scene(tmp_path / profile.name, SEED, quick=True).move(profile.name))
    print(format_summary([Entry(profile, outcome, 0.0)]))
    assert [figure for figure in outcome.figures if figure.holds is False] == []
    assert any(figure.holds for figure in outcome.figures), "nothing was required of it"


def play(*figures: bool | None) -> Run:
    """An attack with such figures."""

    async def run(scene: Scene) -> Outcome:
        rows = (note("x", 1) if holds is None else require("x", holds, True) for holds in figures)
        return Outcome("", "", "", tuple(rows))

    return run


async def break_off(scene: Scene) -> Outcome:
    raise TimeoutError("never")


@pytest.mark.parametrize(
    ("run", "status"), [(play(True, None), 0), (play(True, False), 1), (play(None), 0), (break_off, 1)]
)
def test_the_suite_fails_with_any_of_its_profiles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Run, status: int
) -> None:
    profile = Profile("made-up", "nobody", "does nothing", "nothing", run)
    monkeypatch.setattr("benchmarks.adversary.__main__.find_profiles", lambda names: (profile,))
    assert main(["made-up", "--seed", "1"]) == status
    shown = capsys.readouterr().out
    assert "seed 1" in shown
    assert ("PROBLEM: made-up" in shown) == bool(status)
