"""From a network to a program: folded, absorbed, levels planned, parameters chosen, or refused with reasons.

The smallest ring in which the network's levels fit 128 bits is taken, with the largest scale that fits
there. Sizes of primes follow from the plan: the first prime holds the output and what leads to it, each
further one a level, the special prime is as large as the largest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, log2
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from he.autoplan import DEFAULT_COSTS, PlanRefused
from he.errors import DepthError, HeError, ParameterError
from he.fold import absorb_activations, fold_batch_norms
from he.formats import HEADER_BYTES, WORD_BYTES
from he.layers.counts import count_batch
from he.layers.plan import Step, complete_square, is_monic, plan_batch
from he.magnitudes import compute_magnitudes
from he.network import (
    INPUT,
    BatchNorm,
    Convolution,
    Dense,
    Floats,
    Network,
    Polynomial,
    compute_shapes,
    encode,
    get_sources,
)
from he.params import MAX_MODULUS_BITS, CkksParams, build_params
from he.plan import Form
from he.program import PACKINGS, WEIGHT_KINDS, Options, Packing, Program, Row, Sizes, WeightKind
from he.residues import MAX_WEIGHT_BITS

if TYPE_CHECKING:
    from he.single.layout import SinglePlan

SCALE_BITS: Final = 30
"""Largest scale that is chosen: results are then exact to about four digits."""

LEAST_SCALE_BITS: Final = MappingProxyType({4096: 24, 8192: 25, 16384: 27, 32768: 29})
"""By ring: below it the noise of encryption and of rescaling can be seen in the third digit."""

MAX_PRIME_BITS: Final = 60
LEAST_WEIGHT_BITS: Final = 14
_MAX_LEVELS: Final = 64


@dataclass(frozen=True, slots=True)
class _Trial:
    """A chain of made-up primes, no two alike, to count levels with."""

    bits: int

    @property
    def levels(self) -> int:
        return _MAX_LEVELS

    @property
    def primes(self) -> tuple[int, ...]:
        return tuple(2**self.bits + 2 * index + 1 for index in range(_MAX_LEVELS + 1))


def rewrite(network: Network, options: Options) -> Network:
    """Folded and absorbed as the options say."""
    if options.fold:
        network = fold_batch_norms(network)
    return absorb_activations(network) if options.absorb else network


def compile_network(
    network: Network,
    *,
    packing: Packing = "batch",
    weights: WeightKind = "clear",
    fold: bool = True,
    absorb: bool = True,
    sample: Floats | None = None,
    scale_bits: int | None = None,
    insecure_ring: int | None = None,
) -> Program:
    """The program of `network`.

    `sample` (B, C, H, W) are images to see how large values become; without them intervals of polynomials
    and sums of weights say so. `scale_bits` asks for one scale. `insecure_ring` takes that small ring
    whatever its security, for tests alone.

    Raises: PlanRefused with each ring's reason; ParameterError on what can't be evaluated.
    """
    if packing not in PACKINGS or weights not in WEIGHT_KINDS:
        raise ParameterError(f"packing is one of {PACKINGS}, weights one of {WEIGHT_KINDS}")
    options = Options(packing, weights, fold, absorb)
    rewritten = rewrite(network, options)
    if packing == "single":
        from he.single.layout import plan_single

        plan = plan_single(rewritten, weights=weights, ring=insecure_ring, insecure=insecure_ring is not None)
        return build_program(rewritten, options, plan.params, get_single_scale(weights), plan.reasons)
    magnitudes = compute_magnitudes(rewritten, sample)

    def plan_at(params: CkksParams, bits: int) -> tuple[Step, ...]:
        return plan_batch(rewritten, options, params, Fraction(2**bits))

    trial = plan_batch(rewritten, options, _Trial(SCALE_BITS), Fraction(2**SCALE_BITS))
    depth = _MAX_LEVELS - trial[-1].value.form.level
    reasons: list[str] = []
    for ring in (insecure_ring,) if insecure_ring else tuple(LEAST_SCALE_BITS):
        found = choose_primes(
            ring,
            depth,
            lambda params, bits: _compute_need(plan_at(params, bits), magnitudes, params),
            scale_bits=scale_bits,
            insecure=insecure_ring is not None,
        )
        if isinstance(found, str):
            reasons.append(found)
            continue
        params, bits = found
        return build_program(rewritten, options, params, bits, tuple(reasons))
    raise PlanRefused(reasons)


def choose_primes(
    ring: int,
    depth: int,
    compute_need: Callable[[CkksParams, int], float],
    *,
    scale_bits: int | None = None,
    insecure: bool = False,
) -> tuple[CkksParams, int] | str:
    """Parameters of `depth` levels in this ring with the largest scale, and that scale's bits; or why not.

    `compute_need` gives, under provisional parameters, the bits that the first prime must have.
    """
    limit = 10**6 if insecure else MAX_MODULUS_BITS[ring]
    least = scale_bits or (20 if insecure else LEAST_SCALE_BITS[ring])
    reason = ""
    for bits in range(scale_bits or SCALE_BITS, least - 1, -1):
        if (depth + 2) * bits > limit:
            reason = f"at least {(depth + 2) * bits} bits, and {limit} are all that 128-bit security allows"
            continue
        try:
            provisional = build_params(ring, _get_sizes(depth, bits, MAX_PRIME_BITS), insecure=True)
            first = max(bits + 2, ceil(compute_need(provisional, bits)))
            if first > MAX_PRIME_BITS:
                reason = f"a first prime of {first} bits, and {MAX_PRIME_BITS} are all that a prime can have"
                continue
            sizes = _get_sizes(depth, bits, first)
            if sum(sizes) > limit:
                reason = f"{sum(sizes)} bits, and {limit} are all that 128-bit security allows"
                continue
            return build_params(ring, sizes, insecure=insecure), bits
        except DepthError:
            raise
        except HeError as error:
            reason = str(error)
    return f"ring {ring}: {depth} levels at a scale of {least} bits need {reason}"


def _get_sizes(depth: int, bits: int, first: int) -> tuple[int, ...]:
    return (first, *(bits,) * depth, first)


def _compute_need(steps: tuple[Step, ...], magnitudes: Mapping[str, float], params: CkksParams) -> float:
    """Bits of the first prime such that no sum wraps: four times the largest value must fit."""
    need = 0.0
    for step in steps:
        largest = max(magnitudes[step.layer.name], 1.0)
        if isinstance(step.layer, Polynomial) and is_monic(step.layer):
            largest += abs(float(complete_square(step.layer)[1]))
        for form in (step.product, step.value.form):
            held = sum(log2(prime) for prime in params.primes[1 : form.level])
            need = max(need, log2(largest) + log2(form.scale) + 2 - held)
    return need + 0.1


def build_program(
    network: Network, options: Options, params: CkksParams, scale_bits: int, reasons: tuple[str, ...] = ()
) -> Program:
    """The program of a network that is rewritten already, under these very parameters: what an evaluator
    makes again from a model's bytes.

    Raises: DepthError, ParameterError.
    """
    if options.packing == "single":
        return _build_single(network, options, params, scale_bits, reasons)
    steps = plan_batch(network, options, params, Fraction(2**scale_bits))
    if steps[-1].value.form.level != 1:
        raise DepthError(
            f"{params.name}: the chain is too long, the output is at level {steps[-1].value.form.level}"
        )
    for step in steps:
        if step.weight != 1 and step.weight < 2**LEAST_WEIGHT_BITS:
            raise ParameterError(
                f"layer {step.layer.name!r}: its weights would have {float(log2(step.weight)):.0f} bits, at"
                f" least {LEAST_WEIGHT_BITS} are needed"
            )
        _check_weights(step, options)
    shapes = compute_shapes(network)
    counts = count_batch(steps, shapes, options)
    rows = tuple(
        Row(
            step.layer,
            shapes[step.layer.name],
            min(value.form.level for value in step.sources),
            step.value.form.level,
            _describe(step),
        )
        for step in steps
    )
    return Program(
        network=network,
        options=options,
        params=params,
        scale_bits=scale_bits,
        images=params.slots,
        rows=rows,
        sizes=_compute_sizes(network, options, params, steps),
        counts=counts,
        seconds=DEFAULT_COSTS.compute_seconds(counts, params.ring),
        reasons=reasons,
    )


def _check_weights(step: Step, options: Options) -> None:
    """Raises: ParameterError if a clear weight's integer is too large for exact sums."""
    layer = step.layer
    if options.weights == "clear" and isinstance(layer, Convolution | Dense):
        largest = Fraction(float(np.abs(layer.weights).max())) * step.weight
        if largest >= 2**MAX_WEIGHT_BITS - 1:
            raise ParameterError(
                f"layer {layer.name!r}: a weight takes {log2(largest):.0f} bits at its scale, more than"
                f" {MAX_WEIGHT_BITS}; compile with a smaller scale, or scale the layer down"
            )


def get_single_scale(weights: WeightKind) -> int:
    """Bits of the scale in single packing."""
    from he.single.layout import PRECISION

    return PRECISION[weights].scale


@lru_cache(maxsize=8)
def plan_single_program(network: Network, options: Options, params: CkksParams) -> "SinglePlan":
    """The plan of single packing under these very parameters.

    Raises: ParameterError if it would take others; DepthError.
    """
    from he.single.layout import plan_single

    plan = plan_single(network, weights=options.weights, ring=params.ring, insecure=params.insecure)
    if plan.params != params:
        raise ParameterError(f"{params.name}: this network's plan takes {plan.params.name}")
    return plan


def _build_single(
    network: Network, options: Options, params: CkksParams, scale_bits: int, reasons: tuple[str, ...]
) -> Program:
    plan = plan_single_program(network, options, params)
    if scale_bits != get_single_scale(options.weights):
        raise ParameterError(f"single packing has a scale of {get_single_scale(options.weights)} bits")
    shapes, steps = compute_shapes(network), {step.name: step for step in plan.steps}
    levels, rows = {INPUT: plan.input.level}, []
    for layer in network.layers:
        before, step = min(levels[name] for name in get_sources(layer)), steps.get(layer.name)
        levels[layer.name] = before if step is None else step.result.level
        note = "in the weights behind it" if step is None else ""
        rows.append(Row(layer, shapes[layer.name], before, levels[layer.name], note))
    return Program(
        network=network,
        options=options,
        params=params,
        scale_bits=scale_bits,
        images=1,
        rows=tuple(rows),
        sizes=Sizes(
            request_ciphertexts=plan.image_ciphertexts,
            model_ciphertexts=plan.model_ciphertexts,
            result_ciphertexts=plan.result_ciphertexts,
            model=compute_model_start(network) + plan.model_bytes,
            keys=plan.keys_bytes,
            relin_keys=_compute_relin_bytes(params),
            request=plan.request_bytes,
            result=plan.result_bytes,
        ),
        counts=plan.counts,
        seconds=plan.seconds,
        reasons=reasons,
    )


def _compute_relin_bytes(params: CkksParams) -> int:
    return HEADER_BYTES + params.levels * 2 * len(params.primes) * params.ring * WORD_BYTES


def plan_program(program: Program) -> tuple[Step, ...]:
    """The steps of a program in batch packing."""
    return plan_batch(program.network, program.options, program.params, Fraction(2**program.scale_bits))


def _describe(step: Step) -> str:
    if step.value.raw:
        return "sums finished later"
    if step.evened is not None:
        return "a branch evened out"
    return ""


def get_weight_forms(options: Options, steps: tuple[Step, ...]) -> list[tuple[Step, Form, Form, int, int]]:
    """Of every layer with encrypted weights: the forms of a weight and of a bias, and how many of each."""
    if options.weights == "clear":
        return []
    found = []
    for step in steps:
        layer = step.layer
        if isinstance(layer, Convolution | Dense | BatchNorm):
            weights = layer.scale.size if isinstance(layer, BatchNorm) else layer.weights.size
            biases = layer.shift.size if isinstance(layer, BatchNorm) else layer.bias.size
            found.append((step, Form(step.product.level, step.weight), step.value.form, weights, biases))
    return found


def _compute_sizes(network: Network, options: Options, params: CkksParams, steps: tuple[Step, ...]) -> Sizes:
    def body(level: int) -> int:
        return 2 * level * params.ring * WORD_BYTES

    pixels = int(np.prod(network.shape))
    weights = get_weight_forms(options, steps)
    model = compute_model_start(network)
    model += sum(
        count * body(form.level) + biases * body(bias.level) for _, form, bias, count, biases in weights
    )
    return Sizes(
        request_ciphertexts=pixels,
        model_ciphertexts=sum(count + biases for _, _, _, count, biases in weights),
        result_ciphertexts=network.outputs,
        model=model,
        keys=_compute_relin_bytes(params),
        relin_keys=_compute_relin_bytes(params),
        request=HEADER_BYTES + pixels * body(params.levels),
        result=HEADER_BYTES + network.outputs * body(1),
    )


def compute_model_start(network: Network) -> int:
    """Where ciphertexts begin in a model's bytes: behind header and network, at a multiple of 8."""
    end = HEADER_BYTES + len(encode(network))
    return end + -end % WORD_BYTES
