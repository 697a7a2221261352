"""Numbers in place of patients: stable under one key, private, and splits by patient."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.patients import PatientKey, count_splits

NAMES = [f"patient {n}" for n in range(20)]


def make(path: Path, names: list[str], seed: int = 1) -> PatientKey:
    key = PatientKey.load(path)
    key.add_patients(names)
    key.assign_splits(names, (70, 15, 15), seed)
    for name in names:
        key.add_pair(name, "set", f"{key.numbers[name]:04d}_000", ("a", "b"))
    key.save()
    return key


def test_a_key_is_private_and_keeps_numbers_and_splits(tmp_path: Path) -> None:
    path = tmp_path / "key.csv"
    first = make(path, NAMES[:10])
    assert path.stat().st_mode & 0o777 == 0o600
    again = make(path, NAMES)
    for name in NAMES[:10]:
        assert again.numbers[name] == first.numbers[name]
        assert again.splits[name] == first.splits[name]
    assert sorted(again.numbers.values()) == list(range(20))
    assert [list(again.splits.values()).count(s) for s in ("train", "validation", "test")] == [14, 3, 3]
    assert len(again.rows) == 30


def test_numbers_tell_nothing_but_splits_follow_the_seed(tmp_path: Path) -> None:
    keys = [make(tmp_path / f"{n}.csv", NAMES, seed) for n, seed in enumerate((1, 1, 2))]
    assert keys[0].splits == keys[1].splits
    assert keys[0].splits != keys[2].splits
    # One in 20! draws gives equal orders.
    assert keys[0].numbers != keys[1].numbers


@given(
    patients=st.integers(0, 200),
    shares=st.tuples(*[st.floats(0, 100, allow_nan=False)] * 3).filter(lambda shares: sum(shares) > 1e-3),
)
def test_every_patient_is_in_one_split_and_someone_is_trained_on(
    patients: int, shares: tuple[float, float, float]
) -> None:
    counts = count_splits(patients, shares)
    assert sum(counts) == patients
    assert min(counts) >= 0
    assert counts[0] >= 1 or not patients
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share / sum(shares) * patients) <= 2


def test_shares_are_checked() -> None:
    for shares in ((1.0, 2.0), (-1.0, 2.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="splits: give 3 shares"):
            count_splits(5, shares)


def test_other_files_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "key.csv"
    good = make(path, NAMES[:2]) and path.read_text()
    header, row, *_ = good.splitlines()
    for text, reason in (
        ("a,b\n1,2\n", "is not a key of patients"),
        (f"{header}\n{row.replace('train', 'elsewhere')}\n", "is damaged"),
        (f"{header}\n{row}\n9{row}\n", "two numbers for one patient"),
        (f"{header}\nx,train\n", "can not be read"),
    ):
        path.write_text(text)
        with pytest.raises(ImportRefusedError, match=reason) as refused:
            PatientKey.load(path)
        assert refused.value.path == path
