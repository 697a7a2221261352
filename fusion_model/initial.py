"""Starting weights; no torch, since who publishes a task has no use for it."""

import numpy as np

from fusion_model.config import WEIGHT_UNIT, NetworkConfig
from fusion_model.gradients import compute_first_places


def build_initial_weights(config: NetworkConfig, seed: int) -> tuple[int, ...]:
    """Deterministic integer starting weights in units of 2^-20: nearly the plain mean of the images.

    Channel by channel, the first layer sees the difference A - B of the first two inputs (its square tells
    how far the brighter one is above the mean), their blurred difference, A alone and B alone; the last two
    with a larger bias, so that their squares carry linear filters too. Small noise breaks symmetry.
    """
    generator = np.random.default_rng(seed)
    c, k = config.channels, config.kernel
    # Drawn as if every kernel were the largest, then cut to each channel's own.
    first = generator.normal(0, 0.02, (c, config.inputs, k, k))
    second = generator.normal(0, 0.01, (c, config.second, config.second))
    bias = np.empty(c)
    centre = k // 2
    for channel, side in enumerate(config.kernels):
        match channel % 4:
            case 0:
                first[channel, 0, centre, centre] += 1.3
                first[channel, 1, centre, centre] -= 1.3
            case 1:
                first[channel, 0] += 0.2 / side**2
                first[channel, 1] -= 0.2 / side**2
            case kind:
                first[channel, kind - 2, centre, centre] += 1.0
        bias[channel] = 0.1 if channel % 4 < 2 else 0.6
    flat = np.concatenate([first.ravel()[compute_first_places(config)], bias, second.ravel()])
    return tuple(int(value) for value in np.rint(flat / WEIGHT_UNIT))
