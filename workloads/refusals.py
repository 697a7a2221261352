"""What the kinds of inference share: refusals that name file and remedy, and how far an evaluation is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from he.errors import GateError, GateReason, HeError
from workloads.base import WorkloadError


@contextmanager
def refusing(what: str, path: Path, remedies: Mapping[str, str]) -> Iterator[None]:
    """Turns refusals into WorkloadError naming file and, where the file is another kind's, the remedy."""
    try:
        yield
    except GateError as error:
        remedy = f"; {remedies[what]}" if error.reason in (GateReason.HEADER, GateReason.LENGTH) else ""
        raise WorkloadError(f"{what} {path.name}: {error}{remedy}") from error
    except (HeError, OSError) as error:
        raise WorkloadError(f"{what} {path.name}: {error}") from error


def build_report(path: Path | None) -> Callable[[int, int], None]:
    """Called with (done, total); writes `done total` to the file if there is one."""

    def report(done: int, total: int) -> None:
        if path is not None:
            path.write_text(f"{done} {total}", encoding="ascii")

    return report


def read_progress(path: Path) -> tuple[int, int] | None:
    """What `build_report` last wrote, (done, total); None before and after, and while it is written."""
    try:
        done, _, total = path.read_text(encoding="ascii").partition(" ")
        return int(done), int(total)
    except (OSError, ValueError):
        return None
