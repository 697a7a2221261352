"""The capsule network: squash, routing, margin loss, flat weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from workloads.base import WorkloadError
from workloads.capsnet import (
    build_network,
    compute_margin_loss,
    compute_mask_loss,
    get_flat,
    get_names,
    route,
    set_flat,
    squash,
)
from workloads.capsnet_config import CapsuleConfig, LocalSettings

SMALL = CapsuleConfig(
    side=16, channels=(4, 8), strides=(2, 2, 2), primary_types=2, primary_size=4, class_size=4
)


def test_squash_keeps_direction_and_bounds_length() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.003, 0.004]])
    found = squash(vectors)
    assert torch.allclose(found[0], torch.tensor([0.6, 0.8]) * 25 / 26, atol=1e-6)
    assert torch.equal(found[1], torch.zeros(2))
    assert torch.allclose(found[2].norm(), torch.tensor(0.005**2 / (1 + 0.005**2)), rtol=1e-2)


def test_routing_is_the_published_procedure() -> None:
    """Against the procedure written out in loops and double precision."""
    draw = np.random.default_rng(3)
    predictions = draw.normal(size=(5, 3, 4))
    agreement = np.zeros((5, 3))
    for _ in range(3):
        coupling = np.exp(agreement) / np.exp(agreement).sum(1, keepdims=True)
        capsules = []
        for j in range(3):
            s = sum(coupling[i, j] * predictions[i, j] for i in range(5))
            n = np.linalg.norm(s)
            capsules.append(n**2 / (1 + n**2) * s / n)
        for i in range(5):
            for j in range(3):
                agreement[i, j] += predictions[i, j] @ capsules[j]
    found = route(torch.from_numpy(predictions)[None].float(), 3)[0].numpy()
    np.testing.assert_allclose(found, np.array(capsules), atol=1e-5)


def test_routing_follows_agreement() -> None:
    """What most capsules agree on gets longer with iterations, what they disagree on does not."""
    agreed = torch.tensor([1.0, 0.0]).expand(6, 2)
    split = torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 3)
    predictions = torch.stack([agreed, split], dim=1)[None]
    once, often = (route(predictions, count).norm(dim=-1)[0] for count in (1, 4))
    assert often[0] > once[0]
    assert often[1] <= once[1] + 1e-6


def test_margin_loss_of_known_lengths() -> None:
    lengths = torch.tensor([[0.95, 0.05], [0.5, 0.5], [0.05, 0.95]])
    found = compute_margin_loss(lengths, torch.tensor([0, 0, 0]))
    expected = torch.tensor([0.0, 0.4**2 + 0.5 * 0.4**2, 0.85**2 + 0.5 * 0.85**2])
    assert torch.allclose(found, expected, atol=1e-6)


def test_mask_loss_is_near_zero_for_the_mask_and_large_for_its_opposite() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 3:6] = 1
    right, wrong = (float(compute_mask_loss(sign * (mask * 40 - 20), mask)) for sign in (1, -1))
    assert right < 1e-3
    assert wrong > 10


def test_images_without_a_mask_do_not_count_for_dice() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 3:6] = 1
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2))
    one, both = compute_mask_loss(logits[:1], mask[:1]), compute_mask_loss(logits, mask)
    entropies = [torch.nn.functional.binary_cross_entropy_with_logits(logits[:n], mask[:n]) for n in (1, 2)]
    assert torch.allclose(one - entropies[0], both - entropies[1], atol=1e-6)
    empty = compute_mask_loss(logits[1:], mask[1:])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[1:], mask[1:])
    assert torch.allclose(empty, entropy, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("segmentation", [False, True])
def test_parameters_are_counted_and_gradients_reach_all(shared: bool, segmentation: bool) -> None:
    config = replace(SMALL, shared=shared, segmentation=segmentation)
    network = build_network(config, 5)
    assert len(get_flat(network)) == config.count_parameters()
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    lengths, logits = network(images)
    assert lengths.shape == (3, 2)
    assert bool(((lengths > 0) & (lengths < 1)).all())
    loss = compute_margin_loss(lengths, torch.tensor([0, 1, 0])).mean()
    if segmentation:
        assert logits is not None
        assert logits.shape == (3, 16, 16)
        loss = loss + compute_mask_loss(logits, torch.zeros(3, 16, 16))
    else:
        assert logits is None
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_default_has_about_a_hundred_thousand_weights() -> None:
    assert CapsuleConfig().count_parameters() == 103_520


def test_flat_weights_return_the_same_network() -> None:
    one, other = build_network(SMALL, 1), build_network(SMALL, 2)
    flat = get_flat(one)
    assert not np.array_equal(flat, get_flat(other))
    set_flat(other, flat)
    np.testing.assert_array_equal(get_flat(other), flat)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(one(images)[0], other(images)[0])
    assert get_names(one)[0] == "transform"
    assert len(set(get_names(one))) == len(get_names(one))


def test_flat_weights_of_another_length_or_not_finite_are_refused() -> None:
    network = build_network(SMALL, 1)
    flat = get_flat(network)
    with pytest.raises(WorkloadError, match="weights"):
        set_flat(network, flat[:-1])
    flat[3] = np.nan
    with pytest.raises(WorkloadError, match="weights"):
        set_flat(network, flat)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("side", 7),
        ("side", 30),
        ("channels", (6, 8)),
        ("strides", (2, 3, 1)),
        ("primary_types", 0),
        ("primary_size", 1),
        ("class_size", 65),
        ("classes", 1),
        ("routing", 0),
    ],
)
def test_network_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(WorkloadError, match=field):
        replace(CapsuleConfig(), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("rate", 0.0),
        ("decay", -1.0),
        ("proximal", float("nan")),
        ("mask_weight", 101.0),
        ("shift", 17),
        ("contrast", 1.0),
    ],
)
def test_training_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(WorkloadError, match=field):
        replace(LocalSettings(), **{field: value})  # type: ignore[arg-type]
