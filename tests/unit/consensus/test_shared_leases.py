"""Who begins a committee's batch: just enough organisations to confirm it, each once."""

from hypothesis import given
from hypothesis import strategies as st

from consensus.leases import split_lease
from consensus.types import Address

MINERS = [Address(bytes([number]) * 32) for number in range(8)]


def name(*organisations: str) -> dict[Address, str]:
    return dict(zip(MINERS, organisations, strict=False))


def test_two_of_four_equal_organisations_begin() -> None:
    organisations = name("a", "b", "c", "d")
    first, later = split_lease(MINERS[:4], organisations, dict.fromkeys("abcd", 10), 40)
    assert (first, later) == (tuple(MINERS[:2]), tuple(MINERS[2:4]))


def test_a_second_miner_of_an_organisation_waits() -> None:
    first, later = split_lease(MINERS[:3], name("a", "a", "b"), {"a": 10, "b": 10, "c": 10}, 30)
    assert (first, later) == ((MINERS[0], MINERS[2]), (MINERS[1],))


def test_who_has_no_stake_confirms_nothing() -> None:
    first, later = split_lease(MINERS[:3], name("none", "a", "b"), {"a": 20, "b": 20}, 40)
    assert (first, later) == ((MINERS[1],), (MINERS[0], MINERS[2]))


def test_too_few_all_begin() -> None:
    assert split_lease(MINERS[:2], name("a", "a"), {"a": 10, "b": 30}, 40) == (tuple(MINERS[:2]), ())
    assert split_lease((), {}, {"a": 10}, 10) == ((), ())


@given(
    st.lists(st.sampled_from(MINERS), unique=True),
    st.lists(st.sampled_from("abcdef"), min_size=8, max_size=8),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50)),
    st.integers(0, 100),
)
def test_the_first_suffice_and_none_is_needless(
    order: list[Address], names: list[str], stakes: dict[str, int], others: int
) -> None:
    organisations, total = name(*names), sum(stakes.values()) + others
    first, later = split_lease(order, organisations, stakes, total)
    assert sorted((*first, *later)) == sorted(order)
    if not later:
        return
    assert list(later) == [miner for miner in order if miner in later]
    assert len({organisations[miner] for miner in first}) == len(first)
    assert 3 * sum(stakes[organisations[miner]] for miner in first) > total
    assert 3 * sum(stakes[organisations[miner]] for miner in first[:-1]) <= total
