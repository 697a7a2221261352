"""Every decoder of foreign bytes: the kept corpus, seeded mutations of it, and inputs made to exhaust.

`make fuzz` goes on from here, guided by coverage. What it breaks is kept in the corpus and replayed here.
"""

import random
import subprocess
import sys
import time
import tracemalloc

import pytest

from tests.fuzz import corpus
from tests.fuzz.inventory import COVERED, EXEMPT
from tests.fuzz.mutation import build_bombs, mutate
from tests.fuzz.registry import get_targets
from tests.fuzz.sources import find_raw_decoders
from tests.fuzz.target import ROOT, Form, Target

SEED = 3
MUTATIONS = 40
"""Of each target, times its effort up to three."""
BOMB_BYTES = 8192
BOMB_S = 10.0
"""CPU time of the slowest bomb on a slow machine, with memory traced; what hangs takes for ever."""

TARGETS = list(get_targets().values())


def execute(target: Target, name: str, data: bytes) -> bool:
    try:
        return target.execute_bounded(data)
    except Exception as error:
        error.add_note(f"{target.name}, {name}, {len(data)} bytes: {data[:2000].hex()}")
        raise


@pytest.mark.filterwarnings("ignore:Invalid APNG")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_corpus_and_mutations(target: Target) -> None:
    """Only documented errors leave the decoder, and its invariants hold of whatever it accepts."""
    inputs = corpus.load_corpus(target) | {f"fresh seed {at}": data for at, data in enumerate(target.seeds())}
    accepted = [data for name, data in inputs.items() if execute(target, name, data)]
    assert accepted, f"{target.name} refuses all of its seeds: the rest of the run says nothing"
    pool, draw = list(inputs.values()), random.Random(f"{SEED} {target.name}")
    for number in range(MUTATIONS * min(target.effort, 3)):
        data = mutate(draw.choice(pool), target.form, draw, pool, target.max_bytes)
        execute(target, f"mutation {number} of seed {SEED}", data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_memory_and_depth_are_paid_for(target: Target) -> None:
    """An input claims no more memory than its length allows, nests no deeper than the type, and ends."""
    longest = max(target.seeds(), key=len)
    target.execute(longest)  # what is made once is not the input's doing
    size = BOMB_BYTES // 32 if target.form is Form.TEXT else BOMB_BYTES  # YAML is slow
    for bomb in build_bombs(longest, target.form, size):
        started = time.process_time()
        tracemalloc.start()
        try:
            execute(target, "bomb", bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        allowed = target.base + target.growth * len(bomb)
        assert peak <= allowed, f"{len(bomb)} bytes claimed {peak}, allowed {allowed}: {bomb[:60]!r}"
        assert time.process_time() - started < BOMB_S, f"{len(bomb)} bytes took too long: {bomb[:60]!r}"


def test_every_decoder_is_known() -> None:
    """What reads raw bytes has a target, or a reason in `inventory.py` why it needs none."""
    known = COVERED.keys() | EXEMPT.keys()
    found = set(find_raw_decoders())
    assert sorted(found - known) == [], "add a target to tests/fuzz and name it in inventory.py"
    assert sorted(known - found) == [], "gone: take them out of inventory.py"
    assert not COVERED.keys() & EXEMPT.keys()
    assert set(COVERED.values()) <= get_targets().keys()


def test_the_gate_does_not_load_the_library() -> None:
    """So no foreign byte reaches it before the gate has passed it."""
    program = "import he.gate, sys; sys.exit('Pyfhel' in sys.modules or 'he.backend' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_mutations_are_the_same_in_every_run() -> None:
    for target in TARGETS[::9]:
        pool = sorted(target.seeds())
        runs = [
            [mutate(pool[0], target.form, draw, pool, target.max_bytes) for _ in range(20)]
            for draw in (random.Random(SEED), random.Random(SEED))
        ]
        assert runs[0] == runs[1]
        assert len(set(runs[0])) > 5
