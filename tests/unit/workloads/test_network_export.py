"""A torch network and its description give the same numbers; what has no description is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from he.network import Add, BatchNorm, Network, decode, encode, evaluate
from workloads.base import WorkloadError
from workloads.diagnosis_config import DiagnosisConfig
from workloads.diagnosis_network import PolynomialActivation, Residual, build_network
from workloads.network_export import export_network
from workloads.polynomials import fit_polynomial, sigmoid


def compare(module: nn.Module, shape: tuple[int, int, int]) -> Network:
    """The module's description; both must agree to 1e-5 on images that they were not made for."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
                if part.affine:
                    part.weight.normal_(generator=generator)
                    part.bias.normal_(generator=generator)
    module.eval()
    images = np.random.default_rng(5).uniform(0, 1, (7, *shape))
    network = export_network(module, shape)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images.astype(np.float32))).numpy().reshape(7, -1)
    found = evaluate(network, images)
    assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    assert encode(decode(encode(network))) == encode(network)
    return network


@pytest.mark.parametrize("blocks", [(4, 8), (4, 8, 8), (4, 8, 8, 8)])
@pytest.mark.parametrize("head", ["global", "dense"])
def test_the_diagnosis_networks(blocks, head):
    config = DiagnosisConfig((1, 28, 28), blocks, head=head)
    compare(build_network(config, 1), config.shape)


def test_colour_residuals_and_a_large_kernel():
    config = DiagnosisConfig((3, 21, 16), (4, 4, 4), kernel=5, residual=True, degree=4)
    network = compare(build_network(config, 2), config.shape)
    assert sum(isinstance(layer, Add) for layer in network.layers) == 2


def test_layers_that_the_diagnosis_network_does_not_use():
    gate = PolynomialActivation(fit_polynomial(sigmoid, 3, (-6, 6)))
    body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2, affine=False), gate)
    module = nn.Sequential(
        nn.Conv2d(1, 2, 4, stride=3, padding=2),
        Residual(body),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 5),
    )
    network = compare(module, (1, 18, 18))
    assert any(isinstance(layer, BatchNorm) for layer in network.layers)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), r"network\.1: ReLU has no encrypted form"),
        (nn.Conv2d(2, 2, 3, groups=2), "one group"),
        (nn.Conv2d(1, 2, 3, dilation=2), "no dilation"),
        (nn.Conv2d(1, 2, (3, 5)), "not"),
        (nn.Conv2d(1, 2, 3, stride=(1, 2)), "stride must be the same"),
        (nn.Conv2d(1, 2, 3, padding="same"), "padding in numbers"),
        (nn.AvgPool2d(3, stride=2), "beside each other"),
        (nn.BatchNorm2d(1, track_running_stats=False), "running statistics"),
        (nn.Linear(7, 2), "network: layer"),
    ],
)
def test_what_has_no_description_is_refused(module, reason):
    with pytest.raises(WorkloadError, match=reason):
        export_network(module, (1, 8, 8))
