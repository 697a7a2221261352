"""What a committee's keys and openings cost each member: `python -m benchmarks.multiparty`.

Arithmetic, bytes and the library's sampling alone, of one member of n, in one process and without a network:
what it sends (once, to all, or to one member a piece), and what it computes in each round. Combining is what
everybody does with what all sent. A partial opening is of a whole gradient bundle of the default network,
113 ciphertexts. Parameters are of the training preset. Least of the repetitions; seconds on the clock and of
the processor, which other load disturbs less.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Timing, get_machine, measure
from he.formats import build_bundle_layout
from he.multiparty.keygen import (
    PublicShare,
    RelinFirst,
    RelinSecond,
    add_relin_first,
    build_public_share,
    build_relin_first,
    build_relin_second,
    combine_public_key,
    combine_relin_keys,
)
from he.multiparty.known_answer import build_known_answer, list_test_subsets
from he.multiparty.masking import PairSecrets, compute_pair_secret
from he.multiparty.member import MemberSecrets
from he.multiparty.noise import draw_noise
from he.multiparty.opening import Noise, Question, combine_openings, open_partially
from he.multiparty.sampling import expand_polynomial
from he.multiparty.sharing import Piece, combine, share_out
from he.params import get_params
from he.plan import build_plan
from he.spec import PolynomialSpec

PRESET = "ckks-16384-60x5"
SEED = bytes(range(32))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work of one member."""

    members: int
    threshold: int
    work: str
    sent_bytes: int
    """By this member, to whom it goes once; sharing: to all others together."""
    wall_s: float
    cpu_s: float


def run(members: int, threshold: int, repetitions: int) -> list[Row]:
    """A whole ceremony of all members; one of them is measured."""
    params = get_params(PRESET)
    rows: list[Row] = []

    def note(work: str, sent: int, timing: Timing) -> None:
        rows.append(Row(members, threshold, work, sent, timing.wall_s, timing.cpu_s))

    def take(work: str, call: Callable[[], T]) -> T:
        timing, result = measure(call, repetitions)
        note(work, 0, timing)
        return result

    secrets = [MemberSecrets.generate(params, place) for place in range(members)]
    timing, _ = measure(lambda: MemberSecrets.generate(params, 0), repetitions)
    note("secrets: draw", 0, timing)
    timing, share = measure(lambda: build_public_share(secrets[0], SEED), repetitions)
    note("shares: public key", len(share.encode()), timing)
    timing, first = measure(lambda: build_relin_first(secrets[0], SEED), repetitions)
    note("shares: relin, first round", len(first.encode()), timing)
    shares = [share, *(build_public_share(own, SEED) for own in secrets[1:])]
    firsts = [first, *(build_relin_first(own, SEED) for own in secrets[1:])]
    encoded = [(item.encode(), other.encode()) for item, other in zip(shares, firsts, strict=True)]

    def check() -> None:
        for place, (public, relin) in enumerate(encoded):
            PublicShare.decode(params, place, public)
            RelinFirst.decode(params, place, relin)

    take("gate and decode what all sent", check)
    total = take("relin: add first rounds", lambda: add_relin_first(params, firsts))
    stored = secrets[0].encode()
    timing, second = measure(
        lambda: build_relin_second(MemberSecrets.decode(params, 0, stored), total), repetitions
    )
    note("relin: second round", len(second.encode()), timing)
    seconds: list[RelinSecond] = [second, *(build_relin_second(own, total) for own in secrets[1:])]
    public_key = take("combine public key", lambda: combine_public_key(params, SEED, shares))
    relin_keys = take("combine relin keys", lambda: combine_relin_keys(params, total, seconds))
    timing, pieces = measure(lambda: share_out(secrets[0], threshold, members), repetitions)
    note("secrets: share out", sum(len(piece.encode()) for piece in pieces[1:]), timing)
    dealt: list[tuple[Piece, ...]] = [pieces, *(share_out(own, threshold, members) for own in secrets[1:])]
    key_shares = [combine([row[place] for row in dealt], range(members)) for place in range(members)]
    take("secrets: combine", lambda: combine([row[0] for row in dealt], range(members)))
    known = take("test: build known answer", lambda: build_known_answer(public_key, relin_keys))
    pairs = [make_pairs(place, members) for place in range(members)]
    subset = list_test_subsets(threshold, members)[0]
    noise = Noise((1,), (known.deviation,))
    parts = [
        open_partially(key_shares[place], pairs[place], subset, known.question, noise, b"test")
        for place in subset
    ]
    if not known.is_answered(combine_openings(known.question, parts)[0]):
        raise SystemExit("the known answer did not come out")
    forms = build_bundle_layout(build_plan(params, PolynomialSpec())).bodies
    bodies = tuple(
        np.stack([expand_polynomial(params, SEED, b"%d" % number, body.form.level)] * 2)
        for number, body in enumerate(forms)
    )
    digest = take("open: digest of the bundle", lambda: Question(params, bodies).digest)
    question = Question(params, bodies)
    noise = take("open: noise", lambda: draw_noise(SEED, digest, [2**31] * len(bodies)))
    timing, part = measure(
        lambda: open_partially(key_shares[0], pairs[0], subset, question, noise, b"bundle"), repetitions
    )
    note(f"open: part of {len(bodies)} ciphertexts", len(part.encode(question)), timing)
    parts = [
        open_partially(key_shares[place], pairs[place], subset, question, noise, b"bundle")
        for place in subset
    ]
    take("open: combine", lambda: combine_openings(question, parts))
    return rows


def make_pairs(place: int, members: int) -> PairSecrets:
    found = {}
    for other in range(members):
        if other != place:
            exchanged = hashlib.sha256(bytes(sorted((place, other)))).digest()
            found[other] = compute_pair_secret(exchanged, b"benchmark", (place, other))
    return PairSecrets(place, found)


def show(rows: list[Row], console: Console) -> None:
    table = Table(title=f"A member's work, {PRESET}")
    for name in ("committee", "work"):
        table.add_column(name)
    for name in ("sends, bytes", "clock ms", "processor ms"):
        table.add_column(name, justify="right")
    for row in rows:
        sent = f"{row.sent_bytes:,}" if row.sent_bytes else ""
        committee = f"{row.threshold} of {row.members}"
        table.add_row(committee, row.work, sent, f"{1e3 * row.wall_s:.1f}", f"{1e3 * row.cpu_s:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON of all figures")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=110)
    machine = get_machine()
    console.print(machine)
    rows: list[Row] = []
    for members in arguments.members:
        # More than half, as 2 of 3, 3 of 4 and 5 of 8.
        rows += run(members, members // 2 + 1, arguments.repetitions)
    show(rows, console)
    if arguments.output is not None:
        document = {"machine": machine, "rows": [asdict(row) for row in rows]}
        arguments.output.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
