"""Measures fusing and judging whole pairs in clear: `python -m benchmarks.clear_fusion`.

From a pair of 256x256 pixels in memory to the fused grey image: extra planes, skip, network, fading and
rounding; then every metric of such an image. What is promised is promised of one core, so it is held against
processor time; set OMP_NUM_THREADS=1, or the linear algebra library takes more cores than one.
"""

import argparse
import statistics
from collections.abc import Sequence

from benchmarks.figures import Figure, describe_spread, format_table
from benchmarks.timing import Timing, get_machine, measure
from fusion_model.fuse import fuse_luminance
from fusion_model.initial import build_initial_weights
from fusion_model.metrics import compute_metrics
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms
from fusion_model.pictures import ByteImage, convert_to_bytes
from workloads.fusion import FusionSpec

NETWORKS = {
    "default": FusionSpec(),
    "inception": FusionSpec(patch=8, kernels=(1, 1, 3, 3, 3, 3, 5, 5), planes=("saliency",)),
}
"""4 channels of 3x3 on two planes; 8 channels of 1x1, 3x3 and 5x5 on three."""

SIDE = 256
MAX_FUSE_S = 0.020
MIN_IMAGES_PER_S = 10.0
SEED = 11


def fuse(spec: FusionSpec, pair: ImagePair, repetitions: int) -> tuple[Timing, ByteImage]:
    weights = build_initial_weights(spec.network, 0)
    return measure(lambda: fuse_luminance(spec.network, weights, pair, spec.settings), repetitions)


def judge(pair: ImagePair, fused: ByteImage, repetitions: int) -> Timing:
    first, second = convert_to_bytes(pair.first), convert_to_bytes(pair.second)
    return measure(lambda: compute_metrics(first, second, fused), repetitions)[0]


def describe_fusing(name: str, timings: Sequence[Timing]) -> Figure:
    walls, cpus = [timing.wall_s for timing in timings], [timing.cpu_s for timing in timings]
    spec = NETWORKS[name]
    return Figure(
        f"a {SIDE}x{SIDE} pair fused in clear: {name}, {spec.channels} channels on {spec.inputs} planes",
        describe_spread(walls),
        f"< {MAX_FUSE_S * 1e3:.0f} ms on one core",
        statistics.median(cpus) < MAX_FUSE_S,
        describe_spread(cpus),
    )


def describe_judging(timings: Sequence[Timing]) -> Figure:
    rate, cpu_rate = (
        len(timings) / sum(seconds)
        for seconds in zip(*((timing.wall_s, timing.cpu_s) for timing in timings), strict=True)
    )
    return Figure(
        f"all metrics of {SIDE}x{SIDE} images",
        f"{rate:.1f} images/s",
        f">= {MIN_IMAGES_PER_S:.0f} images/s",
        cpu_rate >= MIN_IMAGES_PER_S,
        f"{cpu_rate:.1f} images/s",
    )


def run(*, quick: bool) -> list[Figure]:
    """The rows of both networks and of the metrics, on phantoms of seed `SEED`."""
    pairs = build_phantoms(SEED, 3 if quick else 10, slices=1, size=SIDE)
    repetitions = 3 if quick else 7
    rows, judged = [], []
    for name, spec in NETWORKS.items():
        made = [fuse(spec, pair, repetitions) for pair in pairs]
        rows.append(describe_fusing(name, [timing for timing, _ in made]))
        judged += [judge(pair, fused, 3) for pair, (_, fused) in zip(pairs, made, strict=True)]
    return [*rows, describe_judging(judged)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller samples")
    options = parser.parse_args()
    print(f"{get_machine()}; seed {SEED}")
    print(format_table(run(quick=options.quick)))


if __name__ == "__main__":
    main()
