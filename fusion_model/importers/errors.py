"""What every importer raises for input that it can not use."""

from pathlib import Path


class ImportRefusedError(ValueError):
    """A file, folder or pair that can not be used; names it, says why, and what to do where that helps."""

    def __init__(self, path: Path, reason: str, remedy: str = "") -> None:
        super().__init__(f"{path}: {reason}" + (f"; {remedy}" if remedy else ""))
        self.path = path
        self.reason = reason
        self.remedy = remedy
