"""Training of the sequence network in clear, and its export as numbers; torch is imported by the calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from he.network import (
    INPUT,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    evaluate,
)
from he.recurrent import RecurrentCell
from workloads.base import WorkloadError
from workloads.sequence import (
    LOGISTIC,
    RELU,
    TANH,
    ClearModel,
    Floats,
    Patient,
    SequenceConfig,
    build_windows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.sequence_network import SequenceNetwork


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """With the frames, all that the result depends on up to rounding."""

    epochs: int = 80
    batch: int = 32
    rate: float = 4e-3
    """Peak rate of Adam; it falls by a cosine to 0."""
    decay: float = 1e-3
    range_penalty: float = 1.0
    shift: int = 1
    """Most pixels by which training frames are moved."""
    colour: float = 0.0
    """Standard deviation of the factor, drawn anew for each plane of a training window, about 1."""
    seed: int = 0


def train(
    config: SequenceConfig, settings: TrainingSettings, patients: Sequence[Patient]
) -> tuple[SequenceNetwork, dict[str, float]]:
    """The trained network in evaluation mode, and the largest argument of each polynomial in training.

    Decisions of all frames of a window are trained alike; patients weigh the same by class.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from workloads.sequence_network import Penalty, SequenceNetwork

    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    parts = [build_windows(patient, config.window) for patient in patients]
    windows = np.concatenate(parts)
    labels = np.concatenate(
        [np.full(len(part), patient.label) for part, patient in zip(parts, patients, strict=True)]
    )
    weight = np.where(labels == 1, 0.5 / (labels == 1).mean(), 0.5 / (labels != 1).mean())
    network = SequenceNetwork(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
    steps = settings.epochs * -(-len(windows) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    network.train()
    for _ in range(settings.epochs):
        for chosen in _draw_batches(generator, len(windows), settings.batch):
            batch = _augment(generator, windows[chosen], settings)
            penalty = Penalty()
            decisions = network(torch.from_numpy(batch).float(), penalty)
            target = torch.from_numpy(labels[chosen]).float()[:, None].expand_as(decisions)
            factor = torch.from_numpy(weight[chosen]).float()[:, None].expand_as(decisions)
            loss = binary_cross_entropy_with_logits(decisions, target, weight=factor)
            if penalty.total is not None:
                loss = loss + settings.range_penalty * penalty.total
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    network.eval()
    penalty = Penalty()
    with torch.no_grad():
        network(torch.from_numpy(windows).float(), penalty)
    return network, penalty.largest


def _draw_batches(generator: np.random.Generator, count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """A last batch of one is left out, for batch normalisation has nothing to say about it."""
    order = generator.permutation(count)
    for start in range(0, count, size):
        if count - start > 1:
            yield order[start : start + size]


def _augment(generator: np.random.Generator, windows: Floats, settings: TrainingSettings) -> Floats:
    """Each window mirrored, moved, brightened and, if the settings say so, tinted as a whole."""
    result = np.empty_like(windows)
    shift = settings.shift
    for index, window in enumerate(windows):
        if generator.random() < 0.5:
            window = window[..., ::-1]
        moved = np.roll(window, tuple(generator.integers(-shift, shift + 1, size=2)), axis=(-2, -1))
        if settings.colour:
            moved = moved * generator.normal(1.0, settings.colour, (moved.shape[1], 1, 1))
        result[index] = np.clip(moved + generator.normal(0.0, 0.05), -1.0, 1.0)
    return result


def predict(network: SequenceNetwork, patient: Patient) -> tuple[Floats, dict[str, float]]:
    """Decisions (windows, T) as logits, and the largest argument of each polynomial."""
    import torch

    from workloads.sequence_network import Penalty

    penalty = Penalty()
    with torch.no_grad():
        windows = torch.from_numpy(build_windows(patient, network.config.window)).float()
        decisions = network(windows, penalty)
    return decisions.double().numpy(), penalty.largest


def export(network: SequenceNetwork, patients: Sequence[Patient]) -> ClearModel:
    """The network in float64; the patients of the training fold say how large features become.

    Raises: WorkloadError for a network without temporal part.
    """
    config = network.config
    if not config.temporal:
        raise WorkloadError("network: only networks with a temporal part have an encrypted program")
    frames = _export_frames(network)
    features = evaluate(frames, np.concatenate([patient.frames for patient in patients]))
    share = network.get_spatial_share().detach().double().numpy()
    head = network.head.weight.detach().double().numpy()[0]
    cell = RecurrentCell(
        weights=_to_array(network.weights.weight),
        recurrent=_to_array(network.recurrent.weight),
        bias=_to_array(network.weights.bias),
        spatial=head * share,
        temporal=head * (1.0 - share),
        offset=float(network.head.bias.detach()[0]),
        gate=LOGISTIC,
        candidate=TANH,
        squash=TANH,
        feature_bound=2.0 * float(np.abs(features).max()),
    )
    return ClearModel(frames, cell, config.window)


def _to_array(parameter: Tensor | None) -> Floats:
    if parameter is None:
        raise WorkloadError("network: a layer lacks its weights")
    result: Floats = parameter.detach().double().numpy()
    return result


def _export_frames(network: SequenceNetwork) -> Network:
    frames, config = network.frames, network.config
    coefficients, interval, error = RELU.coefficients, RELU.interval, RELU.error
    layers: list[Layer] = []
    source = INPUT
    for name, convolution, norm in (
        ("first", frames.first, frames.first_norm),
        ("second", frames.second, frames.second_norm),
    ):
        weights = _to_array(convolution.weight)
        if norm.running_mean is None or norm.running_var is None:
            raise WorkloadError("network: batch normalisation lacks its statistics")
        scale = _to_array(norm.weight) / np.sqrt(norm.running_var.double().numpy() + norm.eps)
        shift = _to_array(norm.bias) - scale * norm.running_mean.double().numpy()
        layers += [
            Convolution(f"{name}.convolution", source, weights, np.zeros(len(weights)), stride=2, padding=1),
            BatchNorm(f"{name}.norm", f"{name}.convolution", scale, shift),
            Polynomial(f"{name}.square", f"{name}.norm", coefficients, interval, error),
        ]
        source = f"{name}.square"
    layers += [
        GlobalAveragePool("pool", source),
        Dense("features", "pool", _to_array(frames.dense.weight), _to_array(frames.dense.bias)),
    ]
    return Network((config.planes, config.side, config.side), tuple(layers))
