"""The trained network on ciphertexts: what it costs, and whether it says the same.

For a process that does not load torch. Requester, model's owner and evaluator are all in it, one after the
other; the evaluator's part starts from bytes and has public keys only.
"""

import gc
import resource
from dataclasses import dataclass

import numpy as np

from benchmarks.diagnosis.trained import describe
from benchmarks.timing import Timing, measure
from he.autoplan import PlanRefused
from he.compiler import compile_network
from he.diagnosis import (
    compute_result,
    decrypt_result,
    encode_keys,
    encode_model,
    encrypt_images,
    encrypt_model,
    load_keys,
    make_keys,
)
from he.network import Network, evaluate
from he.program import Packing, Program, WeightKind
from workloads.diagnosis import LabelledImages
from workloads.diagnosis_metrics import compute_metrics

SAMPLE = 256
"""Training images by which the plan bounds values."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One packing and kind of weights."""

    packing: str
    weights: str
    fold: bool
    absorb: bool
    ring: int
    bits: int
    scale_bits: int
    depth: int
    capacity: int
    """Images that a request can hold."""
    images: int
    """Images that were evaluated."""
    requests: int
    keys_s: Timing
    model_s: Timing
    """Encoding or encrypting the model: once."""
    encrypt_s: Timing
    """This and the next two: one request."""
    evaluate_s: Timing
    decrypt_s: Timing
    predicted_s: float
    model_bytes: int
    keys_bytes: int
    request_bytes: int
    result_bytes: int
    request_ciphertexts: int
    model_ciphertexts: int
    auc: tuple[float, float, float]
    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]
    clear_auc: float
    """Of the same network in clear on the same images."""
    largest_error: float
    """Between logits."""
    changed_decisions: int
    peak_mib: float


def run(
    network: Network,
    sample: LabelledImages,
    test: LabelledImages,
    threshold: float,
    packing: Packing,
    weights: WeightKind,
    *,
    fold: bool = True,
    absorb: bool = True,
    requests: int = 1,
) -> Measured:
    """As many requests as asked for, or as the test images fill. Raises PlanRefused, HeError."""
    program = plan(network, sample, packing, weights, fold=fold, absorb=absorb)
    making, private = measure(lambda: make_keys(program), 1)
    keys = encode_keys(private)
    public = private.public

    def build_model() -> bytes:
        return encode_model(program) if weights == "clear" else encrypt_model(public, program)

    modelling, model = measure(build_model, 1)
    evaluator = load_keys(program, keys)
    times: list[tuple[Timing, Timing, Timing]] = []
    logits: list[float] = []
    sizes = (0, 0)
    for start in range(0, min(len(test.labels), requests * program.images), program.images):
        images = test.images[start : start + program.images]
        encrypting, request = measure(lambda images=images: encrypt_images(public, program, images), 1)
        evaluating, result = measure(
            lambda request=request: compute_result(evaluator, program, model, request), 1
        )
        count = len(images)
        decrypting, values = measure(
            lambda result=result, count=count: decrypt_result(private, program, result, count), 1
        )
        times.append((encrypting, evaluating, decrypting))
        logits += values[:, 0].tolist()
        sizes = len(request), len(result)
        del request
        gc.collect()
    found, labels = np.array(logits), test.labels[: len(logits)]
    clear = evaluate(network, test.images[: len(logits)])[:, 0]
    seen = set(labels.tolist()) == {0, 1}
    metrics = compute_metrics(found, labels, threshold) if seen else None
    plain = compute_metrics(clear, labels, threshold) if seen else None
    nothing = (float("nan"),) * 3
    named = describe(metrics) if metrics else dict.fromkeys(("auc", "sensitivity", "specificity"), nothing)
    best = [min(column, key=lambda one: one.cpu_s) for column in zip(*times, strict=True)]
    return Measured(
        packing=packing,
        weights=weights,
        fold=fold,
        absorb=absorb,
        ring=program.params.ring,
        bits=sum(program.params.prime_bits),
        scale_bits=program.scale_bits,
        depth=program.depth,
        capacity=program.images,
        images=len(logits),
        requests=len(times),
        keys_s=making,
        model_s=modelling,
        encrypt_s=best[0],
        evaluate_s=best[1],
        decrypt_s=best[2],
        predicted_s=program.seconds,
        model_bytes=len(model),
        keys_bytes=len(keys),
        request_bytes=sizes[0],
        result_bytes=sizes[1],
        request_ciphertexts=program.sizes.request_ciphertexts,
        model_ciphertexts=program.sizes.model_ciphertexts,
        **named,
        clear_auc=plain.auc.value if plain else float("nan"),
        largest_error=float(np.abs(found - clear).max()),
        changed_decisions=int(((found >= threshold) != (clear >= threshold)).sum()),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def plan(
    network: Network,
    sample: LabelledImages,
    packing: Packing,
    weights: WeightKind,
    *,
    fold: bool,
    absorb: bool,
    scale_bits: int | None = None,
) -> Program:
    return compile_network(
        network,
        packing=packing,
        weights=weights,
        fold=fold,
        absorb=absorb,
        sample=sample.images[:SAMPLE],
        scale_bits=scale_bits,
    )


@dataclass(frozen=True, slots=True)
class Planned:
    """A row of the ablation: what the compiler says."""

    blocks: int
    weights: str
    fold: bool
    absorb: bool
    asked_scale: int | None
    levels: int = 0
    ring: int = 0
    bits: int = 0
    scale_bits: int = 0
    predicted_s: float = 0.0
    request_bytes: int = 0
    model_bytes: int = 0
    refusal: str = ""
    """Why no ring holds it; empty where one does."""


def plan_row(
    network: Network,
    blocks: int,
    sample: LabelledImages,
    weights: WeightKind,
    fold: bool,
    absorb: bool,
    scale_bits: int | None,
) -> Planned:
    try:
        program = plan(network, sample, "batch", weights, fold=fold, absorb=absorb, scale_bits=scale_bits)
    except PlanRefused as error:
        return Planned(blocks, weights, fold, absorb, scale_bits, refusal=str(error))
    return Planned(
        blocks,
        weights,
        fold,
        absorb,
        scale_bits,
        program.depth,
        program.params.ring,
        sum(program.params.prime_bits),
        program.scale_bits,
        program.seconds,
        program.sizes.request,
        program.sizes.model,
    )
