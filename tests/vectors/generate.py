"""Writes consensus.json anew: `python -m tests.vectors.generate`. Only for a deliberate change of format."""

import json
from pathlib import Path

from tests.unit.consensus.test_vectors import build_vectors

if __name__ == "__main__":
    path = Path(__file__).parent / "consensus.json"
    path.write_text(json.dumps(build_vectors(), indent=1) + "\n")
