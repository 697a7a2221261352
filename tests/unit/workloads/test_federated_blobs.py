import numpy as np
import pytest

from workloads.base import WorkloadError
from workloads.capsnet_config import CapsuleConfig, LocalSettings
from workloads.federated import add_own_noise, clip_change, clip_sum
from workloads.federated_blobs import (
    FederatedNetwork,
    add_opened,
    convert_to_units,
    convert_to_weights,
    decode_model,
    decode_opened,
    encode_model,
    encode_opened,
)

CONFIG = CapsuleConfig(side=8, channels=(4, 4), strides=(2, 2, 2), primary_types=1, primary_size=2)
NETWORK = FederatedNetwork(CONFIG, LocalSettings(epochs=3, rate=2e-3, mirror=False), 20, 1 << 20, 7)
P = NETWORK.parameters


def fill(value: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.full(P, value, dtype=np.int64)


def test_description_has_one_encoding() -> None:
    data = NETWORK.encode()
    assert FederatedNetwork.decode(data) == NETWORK
    for other in (data[:-1], data + b"\0", b"x" + data[1:], data[:52] + b"\2" + data[53:]):
        with pytest.raises(WorkloadError):
            FederatedNetwork.decode(other)


@pytest.mark.parametrize(
    ("field", "value"), [("unit_bits", 0), ("unit_bits", 29), ("clip", 0), ("weights", 0)]
)
def test_description_is_checked(field: str, value: int) -> None:
    fields = {"unit_bits": 20, "clip": 1, "weights": 2} | {field: value}
    with pytest.raises(WorkloadError, match=field):
        FederatedNetwork(CONFIG, LocalSettings(), **fields)


def test_clip_and_weights_that_no_ring_holds_are_refused() -> None:
    with pytest.raises(WorkloadError, match="smaller clip"):
        FederatedNetwork(CONFIG, LocalSettings(), 20, 1 << 50, 1 << 12).build_plan()


def test_models_and_sums_come_back_and_others_are_refused() -> None:
    values = np.random.default_rng(3).integers(-(2**31), 2**31, P, dtype=np.int64)
    model, opened = encode_model(NETWORK, values), encode_opened(NETWORK, values << 20)
    assert np.array_equal(decode_model(NETWORK, model), values)
    assert np.array_equal(decode_opened(NETWORK, opened), values << 20)
    assert len(model) == NETWORK.model_bytes
    for bad in (model[:-1], model + b"\0", opened):
        with pytest.raises(WorkloadError, match="model"):
            decode_model(NETWORK, bad)
    too_large = opened[:-8] + (2**62 + 1).to_bytes(8, "little")
    for bad in (opened[:-1], model, too_large):
        with pytest.raises(WorkloadError, match="opened"):
            decode_opened(NETWORK, bad)


def test_a_round_adds_the_floor_of_the_mean_and_is_cut_to_32_bits() -> None:
    def add(model: int, opened: int, weights: int) -> int:
        data = add_opened(
            NETWORK, encode_model(NETWORK, fill(model)), encode_opened(NETWORK, fill(opened)), weights
        )
        return int(decode_model(NETWORK, data)[0])

    assert add(10, 7, 3) == 12
    assert add(10, -7, 3) == 7
    assert add(2**31 - 2, 2**40, 2) == 2**31 - 1
    assert add(-(2**31), -(2**40), 7) == -(2**31)
    for weights in (0, 8):
        with pytest.raises(WorkloadError, match="weights"):
            add(0, 0, weights)


def test_units_and_weights_convert() -> None:
    flat = np.linspace(-3, 3, P, dtype=np.float32)
    assert np.abs(convert_to_weights(NETWORK, convert_to_units(NETWORK, flat)) - flat).max() <= 2**-21 + 1e-6


def test_the_integers_keep_the_clip() -> None:
    draw = np.random.default_rng(7)
    for scale in (1e-9, 1e-3, 1.0, 1e6, 1e200):
        values = clip_change(NETWORK, draw.normal(0, scale, P))
        assert sum(int(value) ** 2 for value in values) <= NETWORK.clip**2
    with pytest.raises(WorkloadError, match="lower rate"):
        clip_change(NETWORK, np.full(P, np.nan))


def test_own_noise_stays_within_what_a_plan_allows() -> None:
    values = add_own_noise(NETWORK, fill(0), NETWORK.clip, bytes(32))
    assert int(np.abs(values).max()) == NETWORK.clip
    assert np.array_equal(values, add_own_noise(NETWORK, fill(0), NETWORK.clip, bytes(32)))
    assert not np.array_equal(values, add_own_noise(NETWORK, fill(0), NETWORK.clip, b"1" * 32))


def test_an_honest_sum_stays_as_it_is_and_a_longer_one_is_cut() -> None:
    values = clip_change(NETWORK, np.random.default_rng(9).normal(0, 1, P))
    assert np.array_equal(clip_sum(NETWORK, 5 * values, 5), 5 * values)
    cut = clip_sum(NETWORK, 7 * values, 5)
    assert sum(int(value) ** 2 for value in cut) <= (5 * NETWORK.clip) ** 2
    assert np.abs(cut - 5 * values).max() <= 5
