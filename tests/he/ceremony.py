"""A ceremony's members in folders of one process, passing each other files."""

from dataclasses import dataclass, field
from pathlib import Path

from workloads.ceremony import ROUNDS, CeremonyTerms, FinishedCeremony, RoundJob, run_finish, run_round
from workloads.sealed import SealingKey

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


def leave_parts(folder: Path) -> None:
    """What a process leaves that is killed while it writes."""
    for round_name in ROUNDS:
        (folder / f".{round_name}.secret.1.part").write_bytes(b"half")
        (folder / f".{round_name}.blob.1.part").write_bytes(b"half")
