"""A ceremony's members in folders of one process, passing each other files."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from workloads.ceremony import (
    ROUNDS,
    SKIPPED,
    CeremonyTerms,
    FinishedCeremony,
    Renewal,
    RoundJob,
    run_finish,
    run_round,
)
from workloads.sealed import FolderKeys, SealingKey

SMALL = "test-2048-60x3"


@dataclass
class Ceremony:
    """All members' folders below `directory`; `rows` are what they made, by round and place."""

    directory: Path
    preset: str
    members: int
    threshold: int
    name: bytes = bytes(range(32))
    key: SealingKey | None = None
    rows: list[tuple[Path, ...]] = field(default_factory=list)

    def get_terms(self, place: int) -> CeremonyTerms:
        insecure = self.preset.startswith("test-")
        return CeremonyTerms(self.name, self.preset, self.members, self.threshold, place, insecure)

    def get_folder(self, place: int) -> Path:
        return self.directory / f"member{place}"

    def get_job(self, place: int, rounds: int | None = None) -> RoundJob:
        return RoundJob(self.get_terms(place), self.get_folder(place), tuple(self.rows[:rounds]))

    def run_next(self) -> None:
        self.rows.append(tuple(run_round(self.get_job(place), self.key) for place in range(self.members)))

    def run_rounds(self, name: str) -> None:
        """Up to the round of that name, included."""
        while len(self.rows) <= ROUNDS.index(name):
            self.run_next()

    def finish(self) -> list[FinishedCeremony]:
        self.run_rounds("test")
        return [run_finish(self.get_job(place), self.key) for place in range(self.members)]


@dataclass
class Renewed(Ceremony):
    """A renewal of `old`, whose members at `came_from`, by new place, have a share; None: a new member."""

    old: Ceremony = field(kw_only=True)
    came_from: tuple[int | None, ...] = field(kw_only=True)

    def get_job(self, place: int, rounds: int | None = None) -> RoundJob:
        held = sorted((old, new) for new, old in enumerate(self.came_from) if old is not None)
        dealing = held[: self.old.threshold]
        own, folder = self.came_from[place], None
        if (own, place) in dealing and own is not None:
            folder = self.old.get_folder(own)
        keys = self.old.get_folder(held[0][0])
        renewal = Renewal(
            keys / "public.key",
            keys / "relin.keys",
            tuple(new for _, new in dealing),
            tuple(old for old, _ in dealing),
            folder,
            FolderKeys(self.old.key, self.old.key),
        )
        return replace(super().get_job(place, rounds), renewal=renewal)

    def run_next(self) -> None:
        while ROUNDS[len(self.rows)] in SKIPPED:
            self.rows.append(())
        super().run_next()


def leave_parts(folder: Path) -> None:
    """What a process leaves that is killed while it writes."""
    for round_name in ROUNDS:
        (folder / f".{round_name}.secret.1.part").write_bytes(b"half")
        (folder / f".{round_name}.blob.1.part").write_bytes(b"half")
