"""What a node loads: one that only follows the chain has no use for training or encryption."""

import subprocess
import sys

HEAVY = ("torch", "Pyfhel", "he.backend", "workloads.custodian")


def test_a_daemon_loads_neither_torch_nor_encryption() -> None:
    probe = f"import sys, node.daemon; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_commands_start_without_them() -> None:
    probe = f"import sys, node.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
