"""Batch packing planned: the level and exact scale of every value, and where sums are finished.

A slot is an image and a ciphertext one value, so that a layer is sums of products and nothing is shifted.
Every multiplication costs a level. What is fixed here is canonical:

- linear layers and polynomials of other form bring values back to the target scale, exactly, because
  weights are written at the scale that makes it so;
- (x + d)^2 + e costs one level; its square keeps three components ('raw') through pools and, with clear
  weights, through the next linear layer where that has fewer sums to relinearise;
- complete sums are relinearised once, then rescaled;
- a pool's factor lives in the exact scale (absorbed), or costs a level like any other;
- where two branches of an addition have other scales, the branch that ends in a linear layer is written at
  the other's; where none does, one is multiplied by 1 at a scale that evens them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from he.errors import DepthError, ParameterError
from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    Shape,
    compute_shapes,
    get_sources,
)
from he.plan import Form
from he.program import Options


class Chain(Protocol):
    """What planning needs to know of parameters."""

    @property
    def levels(self) -> int: ...
    @property
    def primes(self) -> tuple[int, ...]: ...


MAX_SCALE_BITS = 8192
"""Of an exact scale's numerator: squares upon squares without a linear layer between double it each time."""


@dataclass(frozen=True, slots=True)
class Value:
    """How a layer's results are kept."""

    form: Form
    raw: bool = False
    """In three components, neither relinearised nor rescaled yet."""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer: what it reads, and what becomes of its sums."""

    layer: Layer
    sources: tuple[Value, ...]
    product: Form
    """Of complete sums before relinearisation and rescaling."""
    value: Value
    weight: Fraction = Fraction(1)
    """Scale at which weights are written; for an addition of the constant 1 that evens scales out."""
    evened: int | None = None
    """Which of an addition's sources is multiplied by that constant."""

    @property
    def rescales(self) -> int:
        return self.product.level - self.value.form.level if not self.value.raw else 0

    @property
    def relinearises(self) -> bool:
        """Whether sums of clear products are in three components and end in two."""
        return not self.value.raw and (is_monic(self.layer) or self.sources[0].raw)


def strip(layer: Polynomial) -> tuple[float, ...]:
    """Coefficients without zeros at the end."""
    kept = list(layer.coefficients)
    while kept and kept[-1] == 0.0:
        kept.pop()
    return tuple(kept)


def is_monic(layer: Layer) -> bool:
    """Whether the layer is +-(x + d)^2 + e."""
    if not isinstance(layer, Polynomial):
        return False
    kept = strip(layer)
    return len(kept) == 3 and abs(kept[2]) == 1.0


def complete_square(layer: Polynomial) -> tuple[Fraction, Fraction]:
    """d and e of +-(x + d)^2 + e, exact."""
    c0, c1, c2 = (Fraction(value) for value in strip(layer))
    shift = c1 / (2 * c2)
    return shift, c0 - c2 * shift**2


def count_pool(layer: AveragePool | GlobalAveragePool, shape: Shape) -> int:
    """Values of a mean over a source of `shape`."""
    return layer.size**2 if isinstance(layer, AveragePool) else shape[1] * shape[2]


def get_powers(layer: Polynomial) -> tuple[tuple[int, int, int], ...]:
    """(n, a, b) with x^n = x^a x^b for every power that is needed, factors first, at least depth."""
    kept = strip(layer)
    needed = {power for power, value in enumerate(kept) if power > 1 and value != 0.0}
    powers = []
    for power in range(len(kept) - 1, 1, -1):
        if power in needed:
            half = 1 << ((power - 1).bit_length() - 1)
            powers.append((power, half, power - half))
            needed |= {half, power - half}
    return tuple(reversed(powers))


def plan_batch(network: Network, options: Options, chain: Chain, target: Fraction) -> tuple[Step, ...]:
    """The step of every layer, in their order; values come back to scale `target`.

    Raises: DepthError if the chain is too short; ParameterError on what can't be evaluated.
    """
    _check_used(network)
    written: dict[str, Fraction] = {}
    for _ in range(len(network.layers) + 1):
        planner = _Planner(network, options, chain, target, written)
        change = planner.run()
        if change is None:
            return tuple(planner.steps)
        written[change[0]] = change[1]
    raise ParameterError("the scales of additions do not settle")


def _check_used(network: Network) -> None:
    for layer in network.layers[:-1]:
        if not network.get_consumers(layer.name):
            raise ParameterError(f"layer {layer.name!r}: nothing reads it, and it is not the output")
    for layer in network.layers:
        if isinstance(layer, Polynomial) and len(strip(layer)) < 2:
            raise ParameterError(f"layer {layer.name!r}: a constant is not evaluated on ciphertexts")


class _Planner:
    """One pass over the layers with some scales written differently."""

    def __init__(
        self,
        network: Network,
        options: Options,
        chain: Chain,
        target: Fraction,
        written: Mapping[str, Fraction],
    ) -> None:
        self.network = network
        self.options = options
        self.chain = chain
        self.target = target
        self.written = written
        self.shapes = compute_shapes(network)
        self.raw = find_raw(network, options, self.shapes)
        self.values: dict[str, Value] = {INPUT: Value(Form(chain.levels, target))}
        self.steps: list[Step] = []

    def run(self) -> tuple[str, Fraction] | None:
        """None when all is planned, or a layer and the scale that it must be written at."""
        for layer in self.network.layers:
            if isinstance(layer, Add):
                change = self.find_change(layer)
                if change is not None:
                    return change
            step = self.plan(layer)
            self.steps.append(step)
            self.values[layer.name] = step.value
        return None

    def plan(self, layer: Layer) -> Step:
        sources = tuple(self.values[name] for name in get_sources(layer))
        form = sources[0].form
        match layer:
            case Convolution() | Dense() | BatchNorm():
                return self.plan_linear(layer, sources, form.scale)
            case AveragePool() | GlobalAveragePool():
                if not self.options.absorb:
                    return self.plan_linear(layer, sources, form.scale)
                total = form.scale * count_pool(layer, self.shapes[layer.source])
                product = Form(form.level, total)
                if sources[0].raw:
                    return self.finish(layer, sources, product)
                return Step(layer, sources, product, Value(product))
            case Polynomial():
                if is_monic(layer):
                    return self.finish(layer, sources, self.square(layer, form))
                return self.plan_polynomial(layer, sources)
            case Add():
                return self.plan_add(layer, sources)

    def plan_linear(self, layer: Layer, sources: tuple[Value, ...], scale: Fraction) -> Step:
        """Weights are written so that the rescaled sums have exactly the scale that is asked for."""
        level, rescales = sources[0].form.level, 2 if sources[0].raw else 1
        self.check_level(layer, level - rescales)
        wanted = self.written.get(layer.name, self.target)
        weight = wanted / scale
        for prime in self.chain.primes[level - rescales : level]:
            weight *= prime
        product = Form(level, scale * weight)
        return Step(layer, sources, product, Value(Form(level - rescales, wanted)), weight)

    def plan_polynomial(self, layer: Polynomial, sources: tuple[Value, ...]) -> Step:
        """Powers by least depth, then a linear combination at the lowest of their levels."""
        lowest = min(form.level for form in compute_power_forms(layer, sources[0].form, self.chain).values())
        self.check_level(layer, lowest - 1)
        wanted = self.written.get(layer.name, self.target)
        product = Form(lowest, wanted * self.chain.primes[lowest - 1])
        return Step(layer, sources, product, Value(Form(lowest - 1, wanted)))

    def plan_add(self, layer: Add, sources: tuple[Value, ...]) -> Step:
        first, second = sources[0].form, sources[1].form
        if first.scale == second.scale:
            form = Form(min(first.level, second.level), first.scale)
            return Step(layer, sources, form, Value(form))
        evened = 0 if first.level >= second.level else 1
        changed, kept = (first, second) if evened == 0 else (second, first)
        self.check_level(layer, changed.level - 1)
        weight = kept.scale * self.chain.primes[changed.level - 1] / changed.scale
        form = Form(min(changed.level - 1, kept.level), kept.scale)
        return Step(layer, sources, form, Value(form), weight, evened)

    def find_change(self, layer: Add) -> tuple[str, Fraction] | None:
        """The branch of an addition that can be written at the other's scale, if scales differ."""
        forms = [self.values[name].form for name in get_sources(layer)]
        if forms[0].scale == forms[1].scale:
            return None
        for index in (1, 0):
            name = get_sources(layer)[index]
            if name not in self.written and self.is_free(name):
                return name, forms[1 - index].scale
        return None

    def is_free(self, name: str) -> bool:
        """Whether a value's scale may be chosen, for the sake of its one reader."""
        layer = next((item for item in self.network.layers if item.name == name), None)
        if layer is None or len(self.network.get_consumers(name)) != 1:
            return False
        if isinstance(layer, AveragePool | GlobalAveragePool):
            return not self.options.absorb
        return isinstance(layer, Convolution | Dense | BatchNorm | Polynomial) and not is_monic(layer)

    def finish(self, layer: Layer, sources: tuple[Value, ...], product: Form) -> Step:
        """Relinearised and rescaled here, unless that waits for a later layer."""
        if layer.name in self.raw:
            return Step(layer, sources, product, Value(product, raw=True))
        self.check_level(layer, product.level - 1)
        scale = product.scale / self.chain.primes[product.level - 1]
        return Step(layer, sources, product, Value(Form(product.level - 1, scale)))

    def square(self, layer: Layer, form: Form) -> Form:
        check_scale(layer, form.scale)
        return Form(form.level, form.scale**2)

    def check_level(self, layer: Layer, level: int) -> None:
        if level < 1:
            raise DepthError(f"layer {layer.name!r} needs more levels than {self.chain.levels}")


def check_scale(layer: Layer, scale: Fraction) -> None:
    """Raises: ParameterError if exact products of the scale would be too long."""
    if scale.numerator.bit_length() > MAX_SCALE_BITS:
        raise ParameterError(f"layer {layer.name!r}: too many products in a row without a linear layer")


def compute_power_forms(layer: Polynomial, form: Form, chain: Chain) -> dict[int, Form]:
    """The form of every power up to the degree; each is relinearised and rescaled.

    Raises: DepthError.
    """
    forms = {1: form}
    for power, a, b in get_powers(layer):
        level = min(forms[a].level, forms[b].level)
        if level < 2:
            raise DepthError(f"layer {layer.name!r} needs more levels than {chain.levels}")
        check_scale(layer, forms[a].scale)
        forms[power] = Form(level - 1, forms[a].scale * forms[b].scale / chain.primes[level - 1])
    return forms


def find_raw(network: Network, options: Options, shapes: Mapping[str, Shape]) -> frozenset[str]:
    """Squares and pools behind them whose sums are finished by a later layer, where they are fewer."""
    raw: set[str] = set()
    for layer in network.layers:
        if is_monic(layer):
            raw |= _follow(network, options, shapes, layer.name)
    return frozenset(raw)


def _follow(network: Network, options: Options, shapes: Mapping[str, Shape], start: str) -> set[str]:
    passed: list[str] = []
    name, waiting = start, set[str]()
    fewest = _count(shapes[start])
    while len(consumers := network.get_consumers(name)) == 1:
        reader = consumers[0]
        passed.append(name)
        if isinstance(reader, AveragePool | GlobalAveragePool) and options.absorb:
            if _count(shapes[reader.name]) < fewest:
                fewest, waiting = _count(shapes[reader.name]), set(passed)
            name = reader.name
            continue
        linear = isinstance(reader, Convolution | Dense) and options.weights == "clear"
        # Sums in three components at a higher level cost more, so half as many must be left.
        if linear and 2 * _count(shapes[reader.name]) <= fewest:
            waiting = set(passed)
        break
    return waiting


def _count(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]
