"""The table of attacks, as text and as docs/ADVERSARIES.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adversary.profile import Outcome, Profile
from benchmarks.reliability.report import align
from benchmarks.timing import get_machine

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ADVERSARIES.md"
TEMPLATE = Path(__file__).parent / "template.md"


@dataclass(frozen=True, slots=True)
class Entry:
    """A profile that was run."""

    profile: Profile
    outcome: Outcome | None
    """None if it broke off."""
    seconds: float
    failure: str = ""

    @property
    def holds(self) -> bool:
        return self.outcome is not None and self.outcome.holds

    @property
    def verdict(self) -> str:
        if self.outcome is None:
            return "broke off"
        failed = sum(figure.holds is False for figure in self.outcome.figures)
        return f"no ({failed} of {len(self.outcome.figures)})" if failed else "yes"


def format_summary(entries: Sequence[Entry]) -> str:
    """One line an attack, in Markdown."""
    rows = [("attack", "attacker", "it gained", "it cost the attacker", "it cost the honest", "holds")]
    for entry in entries:
        outcome = entry.outcome
        told = (outcome.gained, outcome.cost, outcome.harm) if outcome else (entry.failure, "", "")
        rows.append((entry.profile.name, entry.profile.attacker, *told, entry.verdict))
    return align(rows)


def format_entry(entry: Entry) -> str:
    """One attack in full."""
    profile = entry.profile
    parts = [
        f"### {profile.name}",
        f"**Attacker:** {profile.attacker}. **Attack:** {profile.attack}.",
        f"**Against:** {profile.setting}",
    ]
    if entry.outcome is not None:
        rows = [(f.what, f.promised, f.reached, f.verdict) for f in entry.outcome.figures]
        parts.append(align([("what", "must be", "was", "holds"), *rows]))
    else:
        parts.append(f"It broke off: {entry.failure}")
    parts.append(profile.remark)
    if profile.covered:
        parts.append(f"The same in tests: `{profile.covered}`.")
    return "\n\n".join(filter(None, parts))


def write_document(entries: Sequence[Entry], seed: int) -> None:
    """Renew docs/ADVERSARIES.md from a run of every profile."""
    text = TEMPLATE.read_text(encoding="utf-8").format(
        machine=get_machine(),
        seed=seed,
        seconds=f"{sum(entry.seconds for entry in entries):.0f}",
        summary=format_summary(entries),
        details="\n\n".join(map(format_entry, entries)),
    )
    DOCUMENT.write_text(text, encoding="utf-8")
