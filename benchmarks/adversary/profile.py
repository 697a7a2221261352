"""What a profile is: an attack carried out against honest nodes, and what came of it, with a verdict."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figure
from tests.integration.material import Material, make_material

CLUSTER = (
    "Four whole validators of equal stake in one process over LevelDB, with real gossip, synchronising, "
    "proposing, voting, settling and evidence, on a clock that the suite drives. The custody is scripted; "
    "bundles and loss ciphertexts are hashes that every node counts as recomputed."
)
MINTED = "money made or lost in all"


@dataclass(slots=True)
class Scene:
    """Where a profile runs: an empty directory, and the seed of its choices."""

    directory: Path
    seed: int
    quick: bool = False
    """A smaller attack of the same kind, for the tests."""
    _shared: dict[Path, Material] = field(default_factory=dict)
    """Keys and ciphertexts, made once for all profiles of a run."""

    def get_material(self) -> Material:
        home = self.directory.parent / "material"
        if home not in self._shared:
            self._shared[home] = make_material(home)
        return self._shared[home]

    def move(self, name: str) -> "Scene":
        """The same for another profile."""
        directory = self.directory.parent / name
        directory.mkdir(parents=True, exist_ok=True)
        return Scene(directory, self.seed, self.quick, self._shared)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack came to. Any figure that does not hold says that it gained what it must not."""

    gained: str
    cost: str
    """To the attacker."""
    harm: str
    """To the honest, however small."""
    figures: tuple[Figure, ...]

    @property
    def holds(self) -> bool:
        return all(figure.holds is not False for figure in self.figures)


Run = Callable[[Scene], Coroutine[None, None, Outcome]]


@dataclass(frozen=True, slots=True)
class Profile:
    """One attack."""

    name: str
    attacker: str
    """Role and stake."""
    attack: str
    """What it does, in a sentence."""
    setting: str
    """What is real where it runs, and what is played."""
    run: Run
    is_slow: bool = False
    """Real ciphertexts or real processes: left out of the quick tests."""
    covered: str = ""
    """The test that makes the same attack; then it is left out of the quick ones, too."""
    remark: str = ""
    """What the figures do not say."""


def require(what: str, reached: object, expected: object) -> Figure:
    """A figure that must be exactly this."""
    return Figure(what, _show(reached), _show(expected), reached == expected)


def require_most(what: str, reached: float, most: float, unit: str = "") -> Figure:
    return Figure(what, f"{_show(reached)}{unit}", f"<= {_show(most)}{unit}", reached <= most)


def require_least(what: str, reached: float, least: float, unit: str = "") -> Figure:
    return Figure(what, f"{_show(reached)}{unit}", f">= {_show(least)}{unit}", reached >= least)


def note(what: str, reached: object) -> Figure:
    """A figure that nothing was promised of."""
    return Figure(what, _show(reached))


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_show, value)) or "none"
    return str(value)
