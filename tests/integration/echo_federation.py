"""Federated learning for tests of its services: integers in the clear, added and opened at once.

An "encrypted" update is a letter, a salt and 8 bytes a value; what the services must not do (open one alone,
open two sums of a round) shows in the log of openings just as it would with ciphertexts.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from node.federated_work import ApplyJob, JudgeJob, Losses, OpenJob, Terms
from workloads.base import WorkloadError

PARAMETERS = 3
UPDATE_BYTES = 1 + 8 + 8 * PARAMETERS
NETWORK = b"a network"
KEYS = b"a public key"


def encode_values(values: Sequence[int]) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


def decode_values(data: bytes) -> list[int]:
    return [int(value) for value in np.frombuffer(data, dtype="<i8")]


def encrypt(values: Sequence[int], weight: int, salt: int) -> bytes:
    """No two are the same, as with real ciphertexts."""
    return b"u" + encode_values([salt, *(weight * value for value in values)])


@dataclass(frozen=True)
class EchoFederation:
    """`log`: a line for each opening. `betrays`: calls the first update the sum."""

    log: Path | None = None
    betrays: bool = False

    def check_terms(self, terms: Terms, model: Path) -> None:
        if terms.network.read_bytes() != NETWORK or len(model.read_bytes()) != 8 * terms.parameters:
            raise WorkloadError("network: another one")

    def check_update(self, terms: Terms, update: Path) -> None:
        data = update.read_bytes()
        if data[:1] != b"u" or len(data) != terms.update_bytes:
            raise WorkloadError("update: malformed")

    def add_updates(self, terms: Terms, updates: tuple[Path, ...], output: Path) -> None:
        for update in updates:
            self.check_update(terms, update)
        if self.betrays:
            output.write_bytes(updates[0].read_bytes())
            return
        rows = [decode_values(update.read_bytes()[9:]) for update in updates]
        total = [sum(column) for column in zip(*rows, strict=True)]
        output.write_bytes(b"s" + encode_values([0, *total]))

    def open_sum(self, job: OpenJob) -> None:
        data = job.total.read_bytes()
        if data[:1] != b"s":
            raise WorkloadError("total: not a sum")
        noise = hashlib.sha256(job.binding).digest()[0] % 2
        values = [value + noise * job.terms.noise_std for value in decode_values(data[9:])]
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps([job.participants, values]) + "\n")
        job.output.write_bytes(encode_values(values))

    def apply(self, job: ApplyJob) -> None:
        opened, before = decode_values(job.opened.read_bytes()), decode_values(job.model.read_bytes())
        values = [b + o // job.weights for b, o in zip(before, opened, strict=True)]
        job.output.write_bytes(encode_values(values))

    def judge(self, job: JudgeJob) -> Losses:
        target = json.loads(job.data.read_text())

        def compute_loss(model: Path) -> int:
            values = decode_values(model.read_bytes())
            return sum(abs(value - wanted) for value, wanted in zip(values, target, strict=True))

        return Losses(compute_loss(job.before), compute_loss(job.after))
