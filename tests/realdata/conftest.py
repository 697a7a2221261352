"""Tests on real image pairs run only where these exist: in BMIF_DATA, or in shared/data by the checkout."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("BMIF_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fusion"

if not (FOLDER / "manifest.csv").is_file():
    collect_ignore_glob = ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = (FOLDER / "manifest.csv").is_file()
    verdict = "were run" if found else "were NOT run: set BMIF_DATA to the data folder"
    terminalreporter.write_line(f"tests on real image pairs ({FOLDER}) {verdict}")
