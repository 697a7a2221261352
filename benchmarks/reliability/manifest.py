"""Manifests: a net, what runs on it, and the list of faults it is put through, with a bound for each."""

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFESTS = Path(__file__).parent / "manifests"

Meanwhile = Literal["any", "finalises", "stops"]
"""What finality does while the fault lasts: goes on at the nodes that were not hit, or stands still."""
Fault = Literal[
    "none", "kill", "pause", "disconnect", "partition", "restart", "wipe", "clock", "down", "custody-away"
]
Seconds = tuple[float, float]
"""A range from which the seed chooses."""


class ManifestError(Exception):
    """A manifest can't be read or does not make sense; the text names file and field."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadPlan(Section):
    """Transfers that run from the first fault to the last."""

    accounts: int = Field(default=8, ge=2, le=256)
    """How many accounts pay each other, each one transfer at a time."""
    per_second: float = Field(default=4.0, gt=0, le=100)


class TaskPlan(Section):
    """An encrypted training task that is mined while the faults happen."""

    rungs: tuple[str, ...]
    """LOSS:REWARD, losses falling."""
    steps: int = Field(default=12, ge=1)
    loss_every: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    batch_fee: int = Field(default=3, ge=0)
    deadline_s: float = Field(default=86_400, ge=36)
    complete_s: float = Field(default=600, gt=0)
    """Bound from the last recovery to the last milestone."""


class Step(Section):
    """One fault, once or several times, each on nodes that the manifest names or the seed chooses."""

    do: Fault
    nodes: tuple[str, ...] = ()
    """Whom it may hit; all when empty."""
    count: int = Field(default=1, ge=1)
    """How many of them at once."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Sides of a partition; halves chosen by the seed when empty."""
    times: int = Field(default=1, ge=1)
    gap_s: Seconds = (0.0, 0.0)
    """Before each time."""
    for_s: Seconds = (0.0, 0.0)
    """How long it lasts."""
    offset_s: float = 0.0
    """Of a clock, from the true time."""
    meanwhile: Meanwhile = "any"
    lag_blocks: int | None = Field(default=None, ge=1)
    """Greatest distance from head to finalised block that a node may report (`do: none`)."""
    bound_s: float = Field(gt=0)
    """From the end of the fault until all nodes have finalised a transaction sent after it."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.do == "clock" and not self.offset_s:
            raise ValueError("clock: give offset_s")
        if self.do != "partition" and self.groups:
            raise ValueError("groups belong to a partition")
        for low, high in (self.gap_s, self.for_s):
            if not 0 <= low <= high:
                raise ValueError("a range of seconds is [least, most]")
        return self


class Manifest(Section):
    """A net and its story."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    about: str
    nodes: int = Field(default=4, ge=4, le=8)
    miners: int = Field(default=2, ge=0)
    params: dict[str, int] = Field(default_factory=dict)
    """Chain parameters that differ from the default."""
    load: LoadPlan = LoadPlan()
    task: TaskPlan | None = None
    steps: tuple[Step, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for step in self.steps:
            named = (*step.nodes, *(name for group in step.groups for name in group))
            unknown = sorted(set(named) - set(self.names))
            if unknown:
                raise ValueError(f"{step.do}: no node {', '.join(unknown)}")
            if step.do == "custody-away" and self.task is None:
                raise ValueError("custody-away needs a task")
        return self


def load_manifest(path: Path) -> Manifest:
    """Raises: ManifestError."""
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ManifestError(f"{path}: {error}") from error


def find_manifest(name: str) -> Path:
    """A manifest of this folder by name, or any by path."""
    path = Path(name)
    return path if path.suffix == ".yaml" else MANIFESTS / f"{name}.yaml"
