"""Exact encrypted sums beside TenSEAL's CKKS vectors, in one run: `python -m benchmarks.aggregation`.

Each participant has an update of P real numbers in [-1, 1] and an integer weight; it multiplies in clear,
encrypts under a public key and serialises. The aggregator reads every update, adds them up and serialises the
sum; the key's holder decrypts it. The measured sum is compared with the weighted sum in clear, of the real
numbers, so that quantisation counts as an error of ours.

Ours rounds numbers to 16, 24 or 36 bits before the weight (`ours-16` and so on) and adds integers exactly, by
the plan that `he.aggregate_plan` makes; 36 bits are the precision that TenSEAL's sums have. TenSEAL takes its
tutorials' parameters, ring 8192, primes of 60, 40, 40 and 60 bits and scale 2^40, a vector for every 4096
numbers, serialised as it does by default (`tenseal`); beside it stand parameters with a single data prime
that hold the same sum at the same scale, which no tutorial names: ring 4096, primes of 60 and 46 bits
(`tenseal-lean`).
All are at 128 bits of security and on one thread.

Every way runs in a process of its own, one after the other. Seconds are of processor time, which other load
disturbs less than the clock: of one participant's encryption, of reading (ours: the gate; TenSEAL: its
deserialisation) one update, of adding all, of decrypting the sum, each with its (de)serialisation.

TenSEAL is not a dependency: `pip install tenseal`.
"""

import argparse
import importlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import get_machine
from he.precision import compute_precision

Floats = NDArray[np.float64]
T = TypeVar("T")

SEED = 20260101
WEIGHT = 250
"""Mean weight of a participant: examples that it trained on."""
OURS = {"ours-16": 16, "ours-24": 24, "ours-36": 36}
"""Bits of a number, its sign included."""
TENSEAL = {"tenseal": (8192, (60, 40, 40, 60), 40), "tenseal-lean": (4096, (60, 46), 40)}
"""Ring, sizes of primes, bits of the scale."""
DOCUMENT = Path(__file__).parent.parent / "docs" / "AGGREGATION.md"
PAGE = """# Encrypted sums of updates

Made by `python -m benchmarks.aggregation --write` on {machine}.

Participants encrypt weighted updates under one public key, anybody adds them up, and the key's holder
decrypts the sum: exactly that of the integers (`he/aggregate_plan.py` has the proof, with a probability of
failure below 2^-64 for up to 64 participants). `ours-16`, `ours-24` and `ours-36` round numbers in [-1, 1]
to so many bits first. `tenseal` are TenSEAL's CKKS vectors with its tutorials' parameters (ring 8192,
primes of 60, 40, 40 and 60 bits, scale 2^40), serialised by default; `tenseal-lean` has a single data
prime, enough for the sum at the same scale (ring 4096, primes of 60 and 46 bits), which no tutorial names.
All have 128 bits of security and run on one thread, each in a process of its own.

Seconds are of processor time: to encrypt one update, to check (TenSEAL: deserialise) one, to add all of
them, to decrypt the sum, with (de)serialisation. Precision is that of the sum against the weighted sum of
the real numbers in clear: bits of the largest value that the largest error leaves right. The upload is what
all participants send in a round. Decrypting is slower here, since it rounds every sum to its integer in
long arithmetic.

{table}

{ratios}

A sum of ours has the length of one update. The module's head says how it is measured.
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """One way, one size."""

    way: str
    parameters: str
    participants: int
    values: int
    key_bytes: int
    update_bytes: int
    encrypt_s: float
    check_s: float
    add_s: float
    decrypt_s: float
    max_error: float
    bits: float

    @property
    def bits_a_value(self) -> float:
        return 8 * self.update_bytes / self.values


@dataclass(slots=True)
class Clock:
    """Processor seconds of this process, by kind of work."""

    seconds: dict[str, float]

    def run(self, kind: str, call: Callable[[], T]) -> T:
        started = time.process_time()
        result = call()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.process_time() - started
        return result


def build_weights(participants: int) -> list[int]:
    """About `WEIGHT` each."""
    draw = np.random.default_rng(SEED)
    return [int(weight) for weight in draw.integers(WEIGHT // 2, 3 * WEIGHT // 2, participants)]


def build_update(participant: int, values: int) -> Floats:
    """(values,) in [-1, 1], most of them small, as differences of weights are."""
    draw = np.random.default_rng((SEED, participant))
    return np.asarray(np.clip(draw.normal(0.0, 0.2, values), -1.0, 1.0))


def build_expected(participants: int, values: int) -> Floats:
    total = np.zeros(values)
    for index, weight in enumerate(build_weights(participants)):
        total += weight * build_update(index, values)
    return total


# --- ours -------------------------------------------------------------------------------------


def measure_ours(way: str, participants: int, values: int) -> Figures:
    """In a process of its own."""
    from he.aggregate import (
        add_updates,
        check_update,
        decrypt_sum,
        encode_public_key,
        encrypt_update,
        load_public_key,
        make_aggregate_keys,
        plan_aggregate,
    )

    weights, unit = build_weights(participants), 2 ** (OURS[way] - 1) - 1
    plan = plan_aggregate(values, unit, sum(weights))
    private = make_aggregate_keys(plan)
    key = encode_public_key(private)
    public = load_public_key(plan, key)
    # Made when first needed, once in a process: no part of an update.
    _ = public.engine
    clock, exact = Clock({}), np.zeros(values, dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(index) for index in range(participants)]
        for index, (path, weight) in enumerate(zip(paths, weights, strict=True)):
            numbers = np.rint(build_update(index, values) * unit).astype(np.int64) * weight
            exact += numbers
            path.write_bytes(
                clock.run("encrypt", lambda n=numbers, w=weight: encrypt_update(public, plan, n, weight=w))
            )
            clock.run("check", lambda path=path: check_update(plan, path))
        total = Path(folder) / "total"
        clock.run("add", lambda: add_updates(plan, paths, total))
        opened = clock.run("decrypt", lambda: decrypt_sum(private, plan, total, participants))
    if not bool((opened == exact).all()):
        raise SystemExit(f"{way}: the decrypted sum is not that of the integers")
    precision = compute_precision(opened / unit, build_expected(participants, values))
    return Figures(
        way=way,
        parameters=f"{plan.params.name}, {plan.digits} a coefficient",
        participants=participants,
        values=values,
        key_bytes=len(key),
        update_bytes=plan.update_bytes,
        encrypt_s=clock.seconds["encrypt"] / participants,
        check_s=clock.seconds["check"] / participants,
        add_s=clock.seconds["add"],
        decrypt_s=clock.seconds["decrypt"],
        max_error=precision.max_error,
        bits=precision.bits,
    )


# --- TenSEAL ----------------------------------------------------------------------------------


class _Vector(Protocol):
    def decrypt(self) -> list[float]: ...
    def serialize(self) -> bytes: ...
    def __add__(self, other: "_Vector") -> "_Vector": ...


def measure_tenseal(way: str, participants: int, values: int) -> Figures:
    """In a process of its own; a chunk of all participants at a time."""
    tenseal = importlib.import_module("tenseal")
    ring, bits, scale = TENSEAL[way]
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, ring, coeff_mod_bit_sizes=list(bits), n_threads=1)
    context.global_scale = 2.0**scale
    key = context.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    public = tenseal.context_from(key, n_threads=1)
    weights = build_weights(participants)
    updates = [weight * build_update(index, values) for index, weight in enumerate(weights)]
    clock, update_bytes, opened = Clock({}), 0, np.empty(values)

    def encrypt(chunk: list[float]) -> bytes:
        return cast(_Vector, tenseal.ckks_vector(public, chunk)).serialize()

    def read(data: bytes) -> _Vector:
        return cast(_Vector, tenseal.ckks_vector_from(public, data))

    def add(vectors: list[_Vector]) -> bytes:
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        return total.serialize()

    for start in range(0, values, ring // 2):
        chunks = [update[start : start + ring // 2].tolist() for update in updates]
        blobs = [clock.run("encrypt", lambda chunk=chunk: encrypt(chunk)) for chunk in chunks]
        update_bytes += len(blobs[0])
        vectors = [clock.run("check", lambda blob=blob: read(blob)) for blob in blobs]
        total = clock.run("add", lambda vectors=vectors: add(vectors))
        opened[start : start + ring // 2] = clock.run(
            "decrypt", lambda total=total: tenseal.ckks_vector_from(context, total).decrypt()
        )
    precision = compute_precision(opened, build_expected(participants, values))
    return Figures(
        way=way,
        parameters=f"{ring}, {'.'.join(map(str, bits))}, scale 2^{scale}",
        participants=participants,
        values=values,
        key_bytes=len(key),
        update_bytes=update_bytes,
        encrypt_s=clock.seconds["encrypt"] / participants,
        check_s=clock.seconds["check"] / participants,
        # Reading is part of adding, as it is of ours.
        add_s=clock.seconds["add"] + clock.seconds["check"],
        decrypt_s=clock.seconds["decrypt"],
        max_error=precision.max_error,
        bits=precision.bits,
    )


# --- all of it --------------------------------------------------------------------------------


def measure(way: str, participants: int, values: int) -> Figures:
    return (measure_tenseal if way in TENSEAL else measure_ours)(way, participants, values)


def run(ways: list[str], participants: list[int], sizes: list[int]) -> list[Figures]:
    """Each way and size in a process of its own, so that no two libraries meet in one."""
    spawn, figures = multiprocessing.get_context("spawn"), []
    for values in sizes:
        for count in participants:
            for way in ways:
                with ProcessPoolExecutor(1, spawn) as pool:
                    figures.append(pool.submit(measure, way, count, values).result())
                print(describe_row(figures[-1]), flush=True)
    return figures


HEAD = (
    "| participants | values | | bytes an update | bits a value | upload | encrypt s | check s | add s"
    " | decrypt s | precision, bits | largest error |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def describe_row(item: Figures) -> str:
    upload = item.update_bytes * item.participants / 1e6
    return (
        f"| {item.participants} | {item.values:,} | {item.way} | {item.update_bytes:,}"
        f" | {item.bits_a_value:.1f} | {upload:,.1f} MB | {item.encrypt_s:.2f} | {item.check_s:.3f}"
        f" | {item.add_s:.2f} | {item.decrypt_s:.2f} | {item.bits:.1f} | {item.max_error:.1e} |"
    )


def describe_ratios(figures: list[Figures]) -> list[str]:
    """By size: bytes and seconds of TenSEAL's ways over those of ours."""
    lines = [
        "| participants | values | | beside | times fewer bytes | encrypt, times faster | add | decrypt |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    found = {(item.values, item.participants, item.way): item for item in figures}
    for (values, count, way), item in found.items():
        for other in TENSEAL:
            reference = found.get((values, count, other))
            if way in OURS and reference is not None:
                ratios = (
                    reference.update_bytes / item.update_bytes,
                    reference.encrypt_s / item.encrypt_s,
                    reference.add_s / item.add_s,
                    reference.decrypt_s / item.decrypt_s,
                )
                numbers = " | ".join(f"{ratio:.1f}" for ratio in ratios)
                lines.append(f"| {count} | {values:,} | {way} | {other} | {numbers} |")
    return lines


def describe_parameters(figures: list[Figures]) -> list[str]:
    lines = ["| participants | values | | parameters | bytes of the public key |", "|---|---|---|---|---|"]
    for item in figures:
        lines.append(
            f"| {item.participants} | {item.values:,} | {item.way} | {item.parameters} | {item.key_bytes:,} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--participants", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--values", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", default=[*OURS, *TENSEAL], choices=[*OURS, *TENSEAL])
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    parser.add_argument("--write", action="store_true", help="renew docs/AGGREGATION.md")
    arguments = parser.parse_args()
    machine = get_machine()
    print(f"seed {SEED}; {machine}; seconds of processor time\n{HEAD}", flush=True)
    figures = run(arguments.ways, arguments.participants, arguments.values)
    ratios = [*describe_ratios(figures), "", *describe_parameters(figures)]
    print("\n".join(ratios))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([asdict(item) for item in figures], indent=1))
    if arguments.write:
        table = "\n".join([HEAD, *map(describe_row, figures)])
        page = PAGE.format(machine=machine, table=table, ratios="\n".join(ratios))
        DOCUMENT.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
