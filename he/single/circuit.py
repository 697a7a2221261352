"""The evaluator's side: the plan carried out on one image, with public keys alone.

Canonical: given model, request and keys, every correct peer gets the same bytes. Additions and products are
exact modulo the primes; relinearisations, rotations and rescalings round, and their places and order are the
plan's: rotations go in chains along ascending steps, sums of giant steps from the largest down, each complete
before it is relinearised; folds follow; then the sum is rescaled, and the bias is added.
"""

from fractions import Fraction

from he.backend import Engine
from he.context import PublicContext
from he.errors import MissingKeyError, ParameterError
from he.formats import HEADER_BYTES
from he.gate import Source
from he.plan import Form
from he.single.blobs import (
    SingleMagic,
    build_single_header,
    check_request,
    get_request_bodies,
    get_result_bodies,
)
from he.single.layout import SinglePlan
from he.single.model import SingleModel, StepWeights, Weight
from he.single.steps import (
    AddStep,
    LinearStep,
    PolynomialStep,
    PoolStep,
    SquareStep,
    Step,
    list_pool_rotations,
)
from he.tensor import CiphertextTensor, PlainVector

Tensors = list[CiphertextTensor]


def run_single(context: PublicContext, plan: SinglePlan, model: SingleModel, request: Source) -> bytes:
    """The canonical result of an encrypted image.

    Raises: GateError on a malformed request; MissingKeyError without relinearisation keys, or without the
    plan's rotation keys; ParameterError if keys or model belong to another plan.
    """
    if context.params != plan.params:
        raise ParameterError(f"{context!r} does not belong to {plan.params.name}")
    if model.plan.digest != plan.digest:
        raise ParameterError("the model belongs to another plan")
    if context.relin_keys is None:
        raise MissingKeyError("a diagnosis needs relinearisation keys")
    held = () if context.galois_keys is None else context.galois_keys.rotations
    if held != plan.rotations:
        raise MissingKeyError(f"this plan needs keys for {len(plan.rotations)} rotations, and no others")
    view = check_request(plan, request)
    engine = context.engine
    image = [
        engine.load(view[body.offset : body.offset + body.get_length(plan.params)], body.form)
        for body in get_request_bodies(plan)
    ]
    output = _Run(engine, plan, model).run(image)
    blob = bytearray(plan.result_bytes)
    blob[:HEADER_BYTES] = build_single_header(plan, SingleMagic.RESULT)
    for body, tensor in zip(get_result_bodies(plan), output, strict=True):
        data = engine.save(tensor).tobytes()
        blob[body.offset : body.offset + len(data)] = data
    return bytes(blob)


class _Run:
    """One evaluation."""

    def __init__(self, engine: Engine, plan: SinglePlan, model: SingleModel) -> None:
        self.engine = engine
        self.plan = plan
        self.model = model
        self.values: dict[str, Tensors] = {}

    def run(self, image: Tensors) -> Tensors:
        readers: dict[str, int] = {}
        for index, step in enumerate(self.plan.steps):
            for name in _get_sources(step):
                readers[name] = index
        self.values = {"input": image}
        for index, step in enumerate(self.plan.steps):
            self.values[step.name] = self.do(step)
            for name in _get_sources(step):
                if readers[name] == index:
                    self.values.pop(name, None)
        return self.values[self.plan.output.name]

    def do(self, step: Step) -> Tensors:
        match step:
            case LinearStep():
                return self.do_linear(step)
            case SquareStep():
                return [self.do_square(step, tensor) for tensor in self.read(step.source, step.read)]
            case PolynomialStep():
                return [
                    _Powers(self.engine, self.plan, tensor).evaluate(step.coefficients, step.result)
                    for tensor in self.read(step.source, step.read)
                ]
            case PoolStep():
                return [self.do_pool(step, tensor) for tensor in self.read(step.source, step.read)]
            case AddStep():
                return self.do_add(step)

    def read(self, name: str, form: Form) -> Tensors:
        """Copies of a value, at the level at which it is used."""
        copies = [self.engine.copy(tensor) for tensor in self.values[name]]
        for tensor in copies:
            self.engine.drop_inplace(tensor, form.level)
        return copies

    # --- linear -------------------------------------------------------------------------------

    def do_linear(self, step: LinearStep) -> Tensors:
        engine, matrix, weights = self.engine, step.matrix, self.model.steps[step.name]
        rotated = self.rotate_babies(step)
        results: Tensors = []
        used = 0
        for parts, bias in zip(matrix.sums, weights.biases, strict=True):
            sums: dict[int, CiphertextTensor] = {}
            for part in parts:
                sums[part.giant] = self.sum_up(part.terms, rotated, weights, used)
                used += len(part.terms)
            total = self.gather(sums)
            for fold in matrix.frame.folds:
                engine.add_inplace(total, engine.rotate(total, fold))
            if step.rescaled:
                engine.rescale_inplace(total)
            self.add(total, bias)
            results.append(total)
        return results

    def rotate_babies(self, step: LinearStep) -> dict[tuple[int, int], CiphertextTensor]:
        """Every input ciphertext by every baby step, each from the one before."""
        rotated: dict[tuple[int, int], CiphertextTensor] = {}
        for index, tensor in enumerate(self.read(step.source, step.read)):
            current, last = tensor, 0
            for baby in step.matrix.babies:
                if baby > last:
                    current, last = self.engine.rotate(current, baby - last), baby
                rotated[index, baby] = current
        return rotated

    def sum_up(
        self,
        terms: tuple[tuple[int, int], ...],
        rotated: dict[tuple[int, int], CiphertextTensor],
        weights: StepWeights,
        first: int,
    ) -> CiphertextTensor:
        """One giant step's sum, in two components."""
        total: CiphertextTensor | None = None
        for index, term in enumerate(terms):
            product = self.multiply(rotated[term], weights.vectors[first + index])
            if total is None:
                total = product
            else:
                self.engine.add_inplace(total, product)
        if total is None:
            raise ParameterError("a sum of no terms")
        if total.components == 3:
            self.engine.relinearize_inplace(total)
        return total

    def gather(self, sums: dict[int, CiphertextTensor]) -> CiphertextTensor:
        """Sum over g of rotate(sums[g], g), from the largest g down."""
        giants = sorted(sums, reverse=True)
        total = sums[giants[0]]
        for last, giant in zip(giants, [*giants[1:], 0], strict=True):
            if last > giant:
                total = self.engine.rotate(total, last - giant)
            if giant != last and giant in sums:
                self.engine.add_inplace(total, sums[giant])
        return total

    def multiply(self, tensor: CiphertextTensor, weight: Weight) -> CiphertextTensor:
        if isinstance(weight, PlainVector):
            return self.engine.multiply_vector(tensor, weight)
        return self.engine.multiply(tensor, weight)

    def add(self, total: CiphertextTensor, weight: Weight) -> None:
        if isinstance(weight, PlainVector):
            self.engine.add_vector_inplace(total, weight)
        else:
            self.engine.add_inplace(total, weight)

    # --- the rest -----------------------------------------------------------------------------

    def do_square(self, step: SquareStep, tensor: CiphertextTensor) -> CiphertextTensor:
        engine = self.engine
        _add_number(engine, tensor, step.shift)
        square = engine.square(tensor)
        engine.relinearize_inplace(square)
        engine.rescale_inplace(square)
        if step.sign < 0:
            engine.negate_inplace(square)
        _add_number(engine, square, step.offset)
        return square

    def do_pool(self, step: PoolStep, tensor: CiphertextTensor) -> CiphertextTensor:
        engine, total, base, last = self.engine, tensor, tensor, 0
        for distance, doubled in list_pool_rotations(step):
            if distance != last:
                base, last = engine.copy(total), distance
            rotated = engine.rotate(total, distance)
            engine.add_inplace(rotated, base)
            total = rotated
            if doubled:
                last = 0
        engine.divide_inplace(total, step.size**2)
        return total

    def do_add(self, step: AddStep) -> Tensors:
        pair = [self.read(step.source, step.reads[0]), self.read(step.other, step.reads[1])]
        if step.evened is not None:
            form = Form(step.reads[step.evened].level, step.weight)
            one = self.engine.build_constant(round(step.weight), form)
            changed = [self.engine.multiply_constant(tensor, one) for tensor in pair[step.evened]]
            for tensor in changed:
                self.engine.rescale_inplace(tensor)
            pair[step.evened] = changed
        for total, other in zip(*pair, strict=True):
            self.engine.add_inplace(total, other)
        return pair[0]


def _get_sources(step: Step) -> tuple[str, ...]:
    return (step.source, step.other) if isinstance(step, AddStep) else (step.source,)


def _add_number(engine: Engine, tensor: CiphertextTensor, number: Fraction) -> None:
    """The nearest number that the tensor's scale can hold, in every slot."""
    if number:
        form = Form(tensor.level, tensor.scale)
        engine.add_constant_inplace(tensor, engine.build_constant(round(number * tensor.scale), form))


class _Powers:
    """A polynomial of one ciphertext by halves."""

    def __init__(self, engine: Engine, plan: SinglePlan, tensor: CiphertextTensor) -> None:
        self.engine = engine
        self.primes = plan.params.primes
        self.powers = {1: tensor}

    def get_power(self, exponent: int, level: int) -> CiphertextTensor:
        """A copy of x^exponent, a power of two, at a level."""
        if exponent not in self.powers:
            half = self.powers.get(exponent // 2)
            root = half if half is not None else self.get_power(exponent // 2, 0)
            square = self.engine.square(root)
            self.engine.relinearize_inplace(square)
            self.engine.rescale_inplace(square)
            self.powers[exponent] = square
        copy = self.engine.copy(self.powers[exponent])
        if level:
            self.engine.drop_inplace(copy, level)
        return copy

    def evaluate(self, coefficients: tuple[Fraction, ...], form: Form) -> CiphertextTensor:
        """Exactly at `form`; the last coefficient is not zero and not the first."""
        exponent = 1 << (len(coefficients) - 1).bit_length() - 1
        low, high = coefficients[:exponent], coefficients[exponent:]
        power = self.get_power(exponent, form.level + 1)
        factor = Form(form.level + 1, form.scale * self.primes[form.level] / power.scale)
        if len(high) == 1:
            constant = self.engine.build_constant(round(high[0] * factor.scale), factor)
            total = self.engine.multiply_constant(power, constant)
        else:
            total = self.engine.multiply(power, self.evaluate(high, factor))
            self.engine.relinearize_inplace(total)
        self.engine.rescale_inplace(total)
        while low and not low[-1]:
            low = low[:-1]
        if len(low) > 1:
            self.engine.add_inplace(total, self.evaluate(low, form))
        elif low:
            _add_number(self.engine, total, low[0])
        return total
