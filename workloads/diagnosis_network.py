"""The diagnosis network as torch modules: convolution, batch norm, quadratic or ReLU, average pool.

Importing this imports torch; never in a process that encrypts. Only modules that `network_export` knows.
Source: Ran & Li, Journal of Imaging Informatics in Medicine 2025, the network's blocks.
"""

import torch
from torch import Tensor, nn

from workloads.diagnosis_config import BlockPlan, DiagnosisConfig
from workloads.polynomials import FittedPolynomial, fit_polynomial, relu


class PolynomialActivation(nn.Module):
    """c0 + c1 x + .. + cd x^d with fixed coefficients, and what it needs to keep x in its interval.

    The batch norm before it has a trained scale and shift, so trained coefficients would say nothing new.
    After a forward pass in training `excess` is the mean square of how far x left the interval.
    """

    def __init__(self, fitted: FittedPolynomial) -> None:
        super().__init__()
        self.fitted = fitted
        self.excess: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            low, high = self.fitted.interval
            self.excess = ((low - x).clamp_min(0) + (x - high).clamp_min(0)).square().mean()
        result = torch.full_like(x, self.fitted.coefficients[-1])
        for coefficient in reversed(self.fitted.coefficients[:-1]):
            result = result * x + coefficient
        return result


class Residual(nn.Module):
    """x + body(x), of equal shapes."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def build_network(config: DiagnosisConfig, seed: int) -> nn.Sequential:
    """The network with weights drawn from the seed; (B, C, H, W) -> (B, 1), a logit.

    Two configurations that differ in the activation alone start with the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for plan in config.plan_blocks():
            parts += _build_block(plan, config)
        if config.head == "global":
            parts.append(nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(config.count_features(), 1))


def _build_block(plan: BlockPlan, config: DiagnosisConfig) -> list[nn.Module]:
    convolution = nn.Conv2d(
        plan.inputs, plan.outputs, config.kernel, stride=plan.stride, padding=config.kernel // 2
    )
    body = [convolution, nn.BatchNorm2d(plan.outputs), _build_activation(config)]
    parts: list[nn.Module] = [Residual(nn.Sequential(*body))] if plan.residual else body
    return [*parts, nn.AvgPool2d(plan.pool)] if plan.pool > 1 else parts


def _build_activation(config: DiagnosisConfig) -> nn.Module:
    if config.activation == "relu":
        return nn.ReLU()
    return PolynomialActivation(fit_polynomial(relu, config.degree, (-config.reach, config.reach)))


def compute_excess(network: nn.Module) -> Tensor:
    """The sum over all polynomial activations of the last pass' mean square excess; 0 if there is none."""
    total = torch.zeros(())
    for module in network.modules():
        if isinstance(module, PolynomialActivation) and module.excess is not None:
            total = total + module.excess
    return total
