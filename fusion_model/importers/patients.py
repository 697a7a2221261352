"""Numbers in place of patients: the private key that leads back, and splits in which no patient is twice."""

import csv
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusion_model.importers.errors import ImportRefusedError

SPLITS = ("train", "validation", "test")
COLUMNS = ("patient", "split", "original", "folder", "id", "source_a", "source_b")


@dataclass(slots=True)
class PatientKey:
    """Which number stands for whom. The hospital keeps it: whoever has it can undo the de-identification.

    A later import with the same key gives the same people the same numbers and the same splits.
    """

    path: Path
    numbers: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "PatientKey":
        """The key of that file, empty if it is not there. Raises ImportRefusedError for another file."""
        key = cls(path)
        if not path.exists():
            return key
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != COLUMNS:
                    raise ImportRefusedError(path, "is not a key of patients", "name another file with --key")
                for row in reader:
                    key._add_row(row)
        except ImportRefusedError:
            raise
        except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
            raise ImportRefusedError(
                path, f"can not be read: {error}", "name another file with --key"
            ) from error
        return key

    def _add_row(self, row: Mapping[str, str | None]) -> None:
        values = {name: row.get(name) for name in COLUMNS}
        complete = {name: value for name, value in values.items() if value is not None}
        number = int(complete.get("patient", ""))
        original, split = complete.get("original", ""), complete.get("split", "")
        if len(complete) != len(COLUMNS) or number < 0 or split not in SPLITS:
            raise ValueError(f"the row of patient {number} is damaged")
        if self.numbers.setdefault(original, number) != number:
            raise ValueError(f"two numbers for one patient, {number} and {self.numbers[original]}")
        self.splits[original] = split
        self.rows.append(complete)

    def add_patients(self, originals: Iterable[str]) -> None:
        """Numbers for the new ones in an order drawn by the system: a number tells nothing of a name."""
        new = sorted(set(originals) - self.numbers.keys())
        random.SystemRandom().shuffle(new)
        start = max(self.numbers.values(), default=-1) + 1
        self.numbers.update({original: start + rank for rank, original in enumerate(new)})

    def assign_splits(self, originals: Iterable[str], shares: Sequence[float], seed: int) -> None:
        """Splits for the new ones such that all patients come as near to the shares as they can."""
        new = sorted(set(originals) - self.splits.keys())
        random.Random(f"split {seed}").shuffle(new)
        wanted = count_splits(len(self.splits) + len(new), shares)
        held = [sum(split == name for split in self.splits.values()) for name in SPLITS]
        for original in new:
            missing = [wish - have for wish, have in zip(wanted, held, strict=True)]
            number = missing.index(max(missing))
            self.splits[original] = SPLITS[number]
            held[number] += 1

    def add_pair(self, original: str, folder: str, name: str, sources: tuple[str, str]) -> None:
        """Remembers of which files a pair was made."""
        number, split = str(self.numbers[original]), self.splits.get(original, SPLITS[0])
        values = (number, split, original, folder, name, *sources)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def save(self) -> None:
        """Writes the file, for its owner alone (mode 0600)."""
        fresh = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.fchmod(descriptor, 0o600)
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in self.rows:
                writer.writerow({**row, "split": self.splits.get(row["original"], row["split"])})
        fresh.replace(self.path)


def count_splits(patients: int, shares: Sequence[float]) -> list[int]:
    """How many patients each split gets: largest remainders, at least one to train on if there is any.

    Raises ValueError unless there is a share from 0 up for each split and their sum is positive.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"splits: give {len(SPLITS)} shares for {', '.join(SPLITS)}, such as 70,15,15")
    exact = [share / sum(shares) * patients for share in shares]
    counts = [int(part) for part in exact]
    order = sorted(range(len(SPLITS)), key=lambda number: (counts[number] - exact[number], number))
    for number in order[: patients - sum(counts)]:
        counts[number] += 1
    if patients and not counts[0]:
        counts[counts.index(max(counts))] -= 1
        counts[0] = 1
    return counts
