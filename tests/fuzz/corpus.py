"""The corpus: `corpus/<target>/` holds seeds made from real objects, inputs that the fuzzer found to reach
new code, and inputs that once broke a decoder.

`python -m tests.fuzz.corpus` writes the seeds anew (after a change of formats); the others stay.
"""

from hashlib import sha256
from pathlib import Path

from tests.fuzz.target import Target

FOLDER = Path(__file__).resolve().parent / "corpus"
SEED, FOUND, CRASH = "seed", "found", "crash"


def get_folder(target: Target) -> Path:
    return FOLDER / target.name


def load_corpus(target: Target) -> dict[str, bytes]:
    """Every kept input by its file's name."""
    folder = get_folder(target)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def save(target: Target, kind: str, data: bytes) -> Path | None:
    """Keep an input; None if it is there already."""
    folder = get_folder(target)
    name = sha256(data).hexdigest()[:12]
    if any(folder.glob(f"*-{name}")):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{name}"
    path.write_bytes(data)
    return path


def write_seeds(target: Target) -> int:
    """Replace a target's seeds; returns how many there are now."""
    for path in get_folder(target).glob(f"{SEED}-*"):
        path.unlink()
    return sum(save(target, SEED, data) is not None for data in target.seeds())


def main() -> None:
    from tests.fuzz.registry import get_targets

    targets = get_targets()
    for folder in FOLDER.iterdir() if FOLDER.exists() else ():
        if folder.name not in targets:
            print(f"{folder.name}: no such target any more; remove {folder}")
    for target in targets.values():
        print(f"{target.name}: {write_seeds(target)} seeds")
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    print(f"{len(targets)} targets, {len(files)} files, {sum(path.stat().st_size for path in files)} bytes")


if __name__ == "__main__":
    main()
