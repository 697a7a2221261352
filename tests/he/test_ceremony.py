"""Key ceremonies in folders: what members end with, and what no accident or other member can do to them."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from he.context import PublicContext
from he.keys import PublicKey, RelinKeys
from he.multiparty.known_answer import list_test_subsets
from he.multiparty.noise import draw_noise
from he.multiparty.opening import Question, combine_openings, open_partially
from he.params import get_params
from he.plan import Form
from tests.he.ceremony import Ceremony
from workloads.ceremony import FinishedCeremony
from workloads.ceremony_share import load_share
from workloads.sealed import FolderKeys, SealingKey, draw_key

SMALL = "test-2048-60x3"


def load_keys(ceremony: Ceremony, finished: FinishedCeremony) -> tuple[PublicKey, RelinKeys]:
    params = get_params(ceremony.preset, allow_insecure=True)
    return (
        PublicKey.decode(params, finished.public_key),
        RelinKeys.decode(params, finished.relin_keys),
    )


def check_keys(ceremony: Ceremony, finished: list[FinishedCeremony], keys: FolderKeys) -> None:
    """One pair of keys, under which the library multiplies and any threshold of members opens the sum."""
    assert len({item.public_key.read_bytes() for item in finished}) == 1
    assert len({item.relin_keys.read_bytes() for item in finished}) == 1
    params = get_params(ceremony.preset, allow_insecure=True)
    engine = PublicContext(params, *load_keys(ceremony, finished[0])).engine
    values = np.linspace(-1, 1, params.slots)
    product = engine.square(engine.encrypt(values, Form(params.levels, Fraction(2**30))))
    engine.relinearize_inplace(product)
    engine.drop_inplace(product, 2)
    words = np.frombuffer(engine.save(product), dtype="<u8").astype(np.uint64)
    question = Question(params, (words.reshape(2, 2, params.ring),))
    held = [
        load_share(ceremony.get_folder(place), keys, allow_insecure=True) for place in range(ceremony.members)
    ]
    expected = float((values**2).sum()) / params.slots * 2**60
    for subset in list_test_subsets(ceremony.threshold, ceremony.members):
        parts = [
            open_partially(
                *held[place], subset, question, draw_noise(bytes(32), b"%d" % place, [2**40]), b"step 1"
            )
            for place in subset
        ]
        assert combine_openings(question, parts)[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("members", "threshold"), [(3, 2), (3, 3), (5, 3)])
@pytest.mark.parametrize("key", [None, draw_key()], ids=["plain", "sealed"])
def test_members_end_with_one_key_and_open_together(
    tmp_path: Path, members: int, threshold: int, key: SealingKey | None
) -> None:
    ceremony = Ceremony(tmp_path, SMALL, members, threshold, key=key)
    check_keys(ceremony, ceremony.finish(), FolderKeys(key, key))
