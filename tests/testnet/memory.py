"""What a running process holds: its memory searched for bytes, by /proc."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw")
_PIECE = 1 << 24


def _read_pieces(pid: int, overlap: int) -> Iterator[bytes]:
    regions = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in regions:
            found = _WRITABLE.match(line)
            if found is None:
                continue
            start, end = (int(number, 16) for number in found.groups())
            while start < end:
                try:
                    memory.seek(start)
                    piece = memory.read(min(_PIECE, end - start))
                except OSError:
                    # Given back since the list was read, or never there, as the kernel's own pages.
                    break
                if not piece:
                    break
                yield piece
                start += len(piece) if start + len(piece) >= end else max(1, len(piece) - overlap)


def has_in_memory(pid: int, needles: Sequence[bytes]) -> bool:
    """Whether any of the needles lies in the process's writable memory."""
    overlap = max(map(len, needles)) - 1
    return any(needle in piece for piece in _read_pieces(pid, overlap) for needle in needles)


def has_in_files(directory: Path, needles: Sequence[bytes]) -> bool:
    """Whether any of the needles lies in a file below the directory."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if any(needle in data for needle in needles):
                return True
    return False
