"""Exits with 0 if the node whose settings file is named answers that it lives, with 1 otherwise."""

import sys
import urllib.request
from pathlib import Path

import yaml


def main() -> None:
    settings = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    port = int(settings.get("api", {}).get("port", 8100))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=4) as answer:
            sys.exit(0 if answer.status == 200 else 1)
    except OSError as error:
        sys.exit(f"no answer on port {port}: {error}")


if __name__ == "__main__":
    main()
