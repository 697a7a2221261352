"""Levels, primes, slots and exact scales of one network on one ring degree.

Costs in levels: a linear layer 1 (the last one none, if its sums fit the last prime), a square 1, another
polynomial of degree d as many as d has bits, pools, means before dense layers and additions none. Linear
layers bring values back to one scale, exactly: weights are written at the scale that makes it so. Where a
branch of an addition has another scale, it is multiplied by 1 on the way down, at a level that it has to
spare.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, log2
from typing import Final

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
    compute_shapes,
    get_sources,
)
from he.params import MAX_MODULUS_BITS, CkksParams, build_params
from he.plan import Form
from he.program import WeightKind
from he.single.matrices import Frame, Matrix, build_matrix
from he.single.shapes import is_square, strip
from he.single.slots import Layout, is_same_place, lay_out_image, lay_out_vector
from he.single.steps import (
    AddStep,
    LinearStep,
    PolynomialStep,
    PoolStep,
    SquareStep,
    Step,
    get_depth,
)

MAX_PRIME_BITS: Final = 60
INPUT_BITS: Final = 2
"""Images have a larger scale than values on the way: encryption is the largest noise of all."""
_MIN_PRIME_BITS: Final = 22
"""Smaller ones are too rare at large ring degrees."""
_FULL_PERIOD_BITS: Final = 12
"""Clear weights are rounded in coefficients: one vector's slots get the errors of all P of them. Vectors that
repeat themselves more often than every 2^12 slots need half a bit less for every halving of P."""
_SPECIAL_BITS: Final = 5
"""The special prime had better be larger than the first by this: noise of changing keys falls with it."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of scales; what is small is fast and imprecise."""

    scale: int
    """Of values."""
    weight: int
    """Of weights: clear ones are rounded at it, encrypted ones carry the noise of encryption."""
    output: int = 6
    """Results may reach 2^(output - 1)."""
    spend: int = 0
    """Most bits more, of values and weights alike, where the ring has them to spare: they cost no time."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a ring allows."""

    params: CkksParams
    precision: Precision
    """With what was spent."""
    input: Form
    image: Layout
    steps: tuple[Step, ...]


class Planner:
    """One network on one ring degree."""

    def __init__(
        self,
        network: Network,
        means: dict[str, int],
        weights: WeightKind,
        precision: Precision,
        ring: int,
        insecure: bool,
    ) -> None:
        self.network = network
        self.means = means
        self.weights = weights
        self.precision = precision
        self.ring = ring
        self.insecure = insecure
        self.shapes = compute_shapes(network)
        self.has_add = any(isinstance(layer, Add) for layer in network.layers)
        self.rescales_last = True
        self.room = 0
        """Bits by which values may grow before the last sums exceed the first prime."""
        self.layouts: dict[str, Layout] = {}
        self.matrices: dict[str, Matrix] = {}

    def run(self) -> Planned:
        """Raises: ParameterError, DepthError with the reason why this ring does not do."""
        self.lay_out()
        last = self.network.layers[-1]
        bits = self.precision.scale + self.get_weight_bits(last) + self.precision.output
        self.rescales_last = not (self.is_linear(last) and bits <= MAX_PRIME_BITS)
        self.room = self.precision.spend if self.rescales_last else MAX_PRIME_BITS - bits
        needs, evened = self.plan_levels()
        params = self.choose_params(needs, evened)
        top = Form(needs[INPUT], Fraction(2 ** (self.precision.scale + INPUT_BITS)))
        steps = self.build_steps(params, top, needs, evened)
        return Planned(params, self.precision, top, self.layouts[INPUT], steps)

    def choose_params(self, needs: dict[str, int], evened: dict[str, int | None]) -> CkksParams:
        """With as many bits more as fit; sets the precision that they give.

        Raises: DepthError, ParameterError of the precision that was asked for.
        """
        wanted = self.precision
        for more in range(wanted.spend, 0, -1):
            scale = wanted.scale + min(more, self.room)
            self.precision = replace(wanted, scale=scale, weight=wanted.weight + more)
            try:
                return self.build_params(self.choose_bits(needs, evened))
            except (DepthError, ParameterError):
                continue
        self.precision = wanted
        return self.build_params(self.choose_bits(needs, evened))

    # --- levels -------------------------------------------------------------------------------

    def get_weight_bits(self, layer: Layer) -> int:
        """Of a linear layer's weights: more where they are means, less where rounding errors are few."""
        if layer.name not in self.matrices:
            return 0
        bits = self.precision.weight + log2(self.means.get(layer.name, 1)) / 2
        if self.weights == "clear":
            bits += (log2(self.matrices[layer.name].frame.period) - _FULL_PERIOD_BITS) / 2
        if layer is self.network.layers[-1] and not self.rescales_last:
            bits = min(bits, MAX_PRIME_BITS - self.precision.scale - self.precision.output)
        return ceil(bits)

    def is_linear(self, layer: Layer) -> bool:
        return isinstance(layer, Convolution | BatchNorm | Dense | GlobalAveragePool)

    def get_cost(self, layer: Layer) -> int:
        if isinstance(layer, AveragePool | Add):
            return 0
        if isinstance(layer, Polynomial):
            return 1 if is_square(layer) else get_depth(len(strip(layer)) - 1)
        return 1 if self.rescales_last or layer is not self.network.layers[-1] else 0

    def plan_levels(self) -> tuple[dict[str, int], dict[str, int | None]]:
        """The level of every value, from the output up, and which branch of each addition is evened."""
        depths, normal = {INPUT: 0}, {INPUT: False}
        evened: dict[str, int | None] = {}
        for layer in self.network.layers:
            depth = max(depths[name] for name in get_sources(layer))
            depths[layer.name] = depth + self.get_cost(layer)
            normal[layer.name] = self.is_linear(layer) or (
                isinstance(layer, Polynomial) and not is_square(layer)
            )
            if isinstance(layer, Add):
                both = normal[layer.source] and normal[layer.other]
                kept = 0 if depths[layer.source] >= depths[layer.other] else 1
                evened[layer.name] = None if both or layer.source == layer.other else 1 - kept
                normal[layer.name] = normal[(layer.source, layer.other)[kept]]
        needs = {INPUT: 1} | {layer.name: 1 for layer in self.network.layers}
        for layer in reversed(self.network.layers):
            for index, name in enumerate(get_sources(layer)):
                extra = int(isinstance(layer, Add) and evened[layer.name] == index)
                needs[name] = max(needs[name], needs[layer.name] + self.get_cost(layer) + extra)
        return needs, evened

    def choose_bits(self, needs: dict[str, int], evened: dict[str, int | None]) -> tuple[int, ...]:
        """Sizes of the primes: each as large as what is rescaled by it asks for, the special one last."""
        scale, weight = self.precision.scale, self.precision.weight
        sizes = {level: float(_MIN_PRIME_BITS) for level in range(2, needs[INPUT] + 1)}
        at = {INPUT: float(scale + INPUT_BITS)}

        def ask(level: int, bits: float) -> None:
            sizes[level] = max(sizes[level], bits)

        for layer in self.network.layers:
            name, level, bits = layer.name, needs[layer.name] + self.get_cost(layer), at[layer.source]
            match layer:
                case AveragePool():
                    at[name] = bits + 2 * log2(layer.size)
                case Add():
                    if evened[name] is not None:
                        ask(needs[name] + 1, weight)
                    at[name] = at[layer.other] if evened[name] == 0 else bits
                case Polynomial() if is_square(layer):
                    ask(level, 2 * bits - scale)
                    at[name] = float(scale)
                case Polynomial():
                    for part in range(needs[name] + 1, level + 1):
                        ask(part, max(scale, weight))
                    at[name] = float(scale)
                case _:
                    if level > needs[name]:
                        ask(level, bits + self.get_weight_bits(layer) - scale)
                    rescaled = level > needs[name]
                    at[name] = float(scale if rescaled else scale + self.get_weight_bits(layer))
        base = ceil(at[self.network.layers[-1].name]) + self.precision.output
        middle = [ceil(sizes[level]) for level in range(2, needs[INPUT] + 1)]
        for size in (base, *middle):
            if size > MAX_PRIME_BITS:
                raise ParameterError(f"a scale needs a prime of {size} bits; at most {MAX_PRIME_BITS} exist")
        special = max(base, *middle) if middle else base
        spare = MAX_MODULUS_BITS.get(self.ring, 0) - base - sum(middle) - special
        special += max(0, min(spare, MAX_PRIME_BITS - special, _SPECIAL_BITS))
        return (base, *middle, special)

    def build_params(self, bits: tuple[int, ...]) -> CkksParams:
        limit = MAX_MODULUS_BITS.get(self.ring)
        if limit is not None and not self.insecure and sum(bits) > limit:
            raise DepthError(f"{len(bits) - 1} levels take {sum(bits)} bits, at most {limit} are secure")
        try:
            return build_params(self.ring, bits, insecure=self.insecure)
        except ParameterError:
            # Names hold a few sizes only, and small primes are few: one size for all in the middle.
            even = (bits[0], *(max(bits[1:-1]) for _ in bits[1:-1]), bits[-1])
            if limit is not None and not self.insecure and sum(even) > limit:
                raise DepthError(f"{len(bits) - 1} levels take {sum(even)} bits of {limit}") from None
            return build_params(self.ring, even, insecure=self.insecure)

    # --- slots --------------------------------------------------------------------------------

    def lay_out(self) -> None:
        slots = self.ring // 2
        self.layouts[INPUT] = lay_out_image(self.shapes[INPUT], slots)
        self.layouts[INPUT].check(INPUT)
        for layer in self.network.layers:
            name, source, shape = layer.name, self.layouts[layer.source], self.shapes[layer.name]
            match layer:
                case Convolution():
                    candidates, folded = self.list_layouts(layer, source), False
                case BatchNorm():
                    candidates, folded = [replace(source, least_period=source.period)], False
                case Dense() | GlobalAveragePool():
                    candidates, folded = [lay_out_vector(shape[0], slots)], True
                case AveragePool():
                    self.layouts[name] = source.shrink(shape, layer.size)
                    continue
                case Polynomial():
                    self.layouts[name] = source
                    continue
                case Add():
                    other = self.layouts[layer.other]
                    if not is_same_place(source, other):
                        raise ParameterError(
                            f"layer {name!r}: {layer.source!r} and {layer.other!r} lie in different slots;"
                            " give both branches the same strides and pools in the same order"
                        )
                    self.layouts[name] = source if source.period >= other.period else other
                    continue
            for candidate in candidates:
                candidate.check(name)
            encrypted = self.weights == "encrypted"
            built = [
                build_matrix(layer, Frame(source, candidate, folded), encrypted=encrypted)
                for candidate in candidates
            ]
            self.matrices[name] = min(built, key=self.compute_cost)
            self.layouts[name] = self.matrices[name].frame.target

    def compute_cost(self, matrix: Matrix) -> tuple[int, int]:
        """In products by a vector: a rotation takes about ten, and so does what follows a ciphertext."""
        switches = matrix.count_rotations() + 3 * matrix.frame.target.count
        if self.weights == "encrypted":
            switches += matrix.relinearisations
        return 10 * switches + matrix.vectors, matrix.frame.target.mux

    def list_layouts(self, layer: Convolution, source: Layout) -> list[Layout]:
        """Results where windows begin; the gaps between them may hold further channels."""
        dilation = source.dilation * layer.stride
        plain = replace(source, shape=self.shapes[layer.name], dilation=dilation, least_period=source.period)
        if self.has_add:
            # Branches must meet in the same slots, whatever is cheaper on the way.
            return [plain]
        muxes = [1 << bit for bit in range(dilation.bit_length()) if dilation % (1 << bit) == 0]
        return [replace(plain, mux=mux, unit=dilation // mux) for mux in muxes if mux <= 4]

    # --- exact forms --------------------------------------------------------------------------

    def build_steps(
        self, params: CkksParams, top: Form, needs: dict[str, int], evened: dict[str, int | None]
    ) -> tuple[Step, ...]:
        scales = {INPUT: top.scale}
        steps: list[Step] = []
        target = Fraction(2**self.precision.scale)
        for layer in self.network.layers:
            name, level, scale = layer.name, needs[layer.name], scales[layer.source]
            read = Form(level + self.get_cost(layer), scale)
            layout = self.layouts[name]
            step: Step
            match layer:
                case AveragePool():
                    neighbours = self.layouts[layer.source].neighbours
                    result = Form(level, scale * layer.size**2)
                    step = PoolStep(name, layer.source, layout, read, result, layer.size, neighbours)
                case Polynomial() if is_square(layer):
                    c0, c1, c2 = strip(layer)
                    shift = c1 / (2 * c2)
                    result = Form(level, scale**2 / params.primes[level])
                    offset = c0 - c2 * shift**2
                    sign = 1 if c2 > 0 else -1
                    step = SquareStep(name, layer.source, layout, read, result, shift, sign, offset)
                case Polynomial():
                    result = Form(level, target)
                    step = PolynomialStep(name, layer.source, layout, read, result, strip(layer))
                case Add():
                    step = self.build_add(params, layer, scales, level, evened[name])
                case _:
                    rescaled = read.level > level
                    wanted = target if rescaled else target * 2 ** self.get_weight_bits(layer)
                    weight = Form(read.level, wanted / scale * (params.primes[level] if rescaled else 1))
                    product = Form(read.level, scale * weight.scale)
                    result = Form(level, wanted)
                    matrix = self.matrices[name]
                    step = LinearStep(name, layer.source, matrix, read, weight, product, result, rescaled)
            steps.append(step)
            scales[name] = step.result.scale
        return tuple(steps)

    def build_add(
        self, params: CkksParams, layer: Add, scales: dict[str, Fraction], level: int, evened: int | None
    ) -> AddStep:
        pair = (scales[layer.source], scales[layer.other])
        layout = self.layouts[layer.name]
        names = (layer.name, layer.source, layer.other)
        if evened is None:
            reads = (Form(level, pair[0]), Form(level, pair[1]))
            return AddStep(*names, layout, reads, reads[0], None, Fraction(1))
        kept = pair[1 - evened]
        forms = [Form(level, kept), Form(level, kept)]
        forms[evened] = Form(level + 1, pair[evened])
        weight = kept * params.primes[level] / pair[evened]
        return AddStep(*names, layout, (forms[0], forms[1]), Form(level, kept), evened, weight)
