"""Measures a pair fused by a peer that can't see it: `python benchmarks/encrypted_fusion.py`.

Prints, for a 256x256 synthetic pair and two networks, the bytes that travel, the seconds of each part, and
the error against the textbook formulas in clear. The requester runs in this process, the peer in another;
the network between them is left out. Every time is the least of its repetitions; processor time stands
beside it, which other load disturbs less.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.clear_fusion import NETWORKS
from benchmarks.timing import Timing, get_machine, measure
from fusion_model.pairs import ImagePair
from fusion_model.phantom import build_phantoms
from fusion_model.pictures import convert_to_bytes
from workloads.encrypted_fusion import EncryptedFusion, FuseJob
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.fusion_request import FusionRequest, build_planes

Floats = NDArray[np.float64]

UNIT = 2.0**-20


@dataclass(frozen=True, slots=True)
class Figures:
    """One network on one pair."""

    network: str
    planes: int
    channels: int
    tile: int
    requests: int
    data_bits: int
    keys_bytes: int
    upload_bytes: int
    """Keys included."""
    download_bytes: int
    make_keys: Timing
    encrypt: Timing
    evaluate: Timing
    """The peer's gate, loading of keys, circuit and writing."""
    decrypt: Timing
    peer_peak_mib: float
    error_grey: float
    """Largest |F - clear F|, grey levels of 255."""
    rms_grey: float
    changed_pixels: int
    """Pixels whose 8-bit value differs from the clear one's, and by one at most."""


def run_peer(fusion: EncryptedFusion, job: FuseJob, repetitions: int) -> tuple[Timing, float]:
    """In the peer's own process: time, and its peak memory in MiB. All repetitions give the same bytes."""
    results = set()

    def evaluate() -> None:
        fusion.run(job)
        results.add(job.output.read_bytes())

    timing, _ = measure(evaluate, repetitions)
    if len(results) != 1:
        raise RuntimeError("repetitions came to different bytes")
    return timing, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuse_in_clear(spec: FusionSpec, weights: tuple[int, ...], pair: ImagePair) -> Floats:
    """F (H, W) by plain correlations in double precision, borders by reflection."""
    planes, skip = build_planes(spec, pair)
    margin = spec.circuit.margin
    bordered = np.pad(planes, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    tensors = spec.circuit.split(weights)
    change = np.full(bordered.shape[1:], tensors.compute_tied_bias() * UNIT**3)
    for kernels, bias, second in zip(tensors.w, tensors.b, tensors.v, strict=True):
        hidden = np.full(bordered.shape[1:], bias * UNIT)
        for plane, kernel in zip(bordered, kernels, strict=True):
            hidden += ndimage.correlate(plane, kernel * UNIT, mode="constant")
        change += ndimage.correlate(hidden**2, second * UNIT, mode="constant")
    inner = slice(margin, -margin or None)
    fused: Floats = skip + np.minimum(1, 32 * planes[:2].max(axis=0)) * change[inner, inner]
    return fused


def run(name: str, fusion: EncryptedFusion, side: int, repetitions: int, directory: Path) -> Figures:
    spec = NETWORKS[name]
    weights = WORKLOAD.build_initial_weights(spec.encode(), 0)
    pair = crop(build_phantoms(11, 1)[0], side)
    making, request = measure(
        lambda: FusionRequest(spec.encode(), weights, pair, fusion), max(1, repetitions)
    )
    encrypting = decrypting = evaluating = Timing(0.0, 0.0)
    peak = 0.0
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in range(request.parts):
            paths = [directory / f"{name}-{part}.{kind}" for kind in ("request", "result", "progress")]
            timing, upload = measure(lambda part=part: request.encrypt(part), repetitions)  # type: ignore[misc]
            encrypting = encrypting + timing
            paths[0].write_bytes(upload)
            job = FuseJob(spec.encode(), weights, request.tile, *paths)
            timing, peak = pool.submit(run_peer, fusion, job, repetitions).result()
            evaluating = evaluating + timing
            result = paths[1].read_bytes()
            timing, _ = measure(lambda part=part, result=result: request.decrypt(part, result), 1)  # type: ignore[misc]
            decrypting = decrypting + timing
    fused, clear = request.finish(), fuse_in_clear(spec, weights, pair)
    error = (fused.luminance - clear) * 255
    steps = np.abs(fused.image.astype(int) - convert_to_bytes(clear))
    if steps.max() > 1:
        raise RuntimeError(f"a pixel is {steps.max()} grey levels from the clear one")
    return Figures(
        network=name,
        planes=spec.inputs,
        channels=spec.channels,
        tile=request.tile,
        requests=request.parts,
        data_bits=fusion.build_plan(spec.encode(), weights, request.tile).data_bits,
        keys_bytes=request.key_bytes,
        upload_bytes=request.parts * request.request_bytes,
        download_bytes=request.parts * request.result_bytes,
        make_keys=making,
        encrypt=encrypting,
        evaluate=evaluating,
        decrypt=decrypting,
        peer_peak_mib=peak,
        error_grey=float(np.abs(error).max()),
        rms_grey=float(np.sqrt(np.mean(error**2))),
        changed_pixels=int(np.count_nonzero(steps)),
    )


def crop(pair: ImagePair, side: int) -> ImagePair:
    """The pair, repeated or cut to side x side pixels."""
    times = -(-side // min(pair.first.shape))
    first, second = (np.tile(image, (times, times))[:side, :side] for image in pair.planes)
    return ImagePair(pair.name, pair.patient, first, second)


def print_figures(found: list[Figures]) -> None:
    """One column a network."""
    seconds = ("make_keys", "encrypt", "evaluate", "decrypt")
    rows = [
        ("network", *(f"{each.network}, {each.planes} planes, {each.channels} channels" for each in found)),
        ("tile, requests", *(f"{each.tile}x{each.tile}, {each.requests}" for each in found)),
        ("data scale", *(f"2^{each.data_bits}" for each in found)),
        ("relinearisation keys", *(f"{each.keys_bytes / 1e6:.2f} MB" for each in found)),
        ("upload, with keys", *(f"{each.upload_bytes / 1e6:.1f} MB" for each in found)),
        ("download", *(f"{each.download_bytes / 1e6:.2f} MB" for each in found)),
        (
            "both at 100 Mbit/s, computed",
            *(f"{(each.upload_bytes + each.download_bytes) * 8 / 1e8:.1f} s" for each in found),
        ),
        *(
            (
                name.replace("_", " "),
                *(
                    f"{getattr(each, name).wall_s:.2f} s ({getattr(each, name).cpu_s:.2f} s)"
                    for each in found
                ),
            )
            for name in seconds
        ),
        ("peer's peak memory", *(f"{each.peer_peak_mib:.0f} MiB" for each in found)),
        ("largest error", *(f"{each.error_grey:.4f} grey levels" for each in found)),
        ("rms error", *(f"{each.rms_grey:.5f} grey levels" for each in found)),
        ("pixels off by one of 255", *(str(each.changed_pixels) for each in found)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("times: wall (processor), least of the repetitions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256, help="pixels of the square pair's side")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--preset", default=EncryptedFusion().preset)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine, fusion = get_machine(), EncryptedFusion(options.preset, allow_insecure=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = [run(name, fusion, options.side, options.repetitions, Path(scratch)) for name in NETWORKS]
    if options.json:
        document = {"machine": machine, "side": options.side, "preset": options.preset}
        print(json.dumps({**document, "networks": [asdict(each) for each in found]}, indent=1))
        return
    print(f"{options.side}x{options.side} pair, {options.preset}; {machine}")
    print_figures(found)


if __name__ == "__main__":
    main()
