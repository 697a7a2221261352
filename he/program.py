"""What a network was compiled to: parameters, levels, sizes and costs, for people and for both packings."""

from dataclasses import dataclass
from typing import Final, Literal

from he.counts import Counts, Operation
from he.network import Layer, Network, Shape
from he.params import MAX_MODULUS_BITS, CkksParams

Packing = Literal["batch", "single"]
"""`batch`: a slot is an image, a ciphertext a value. `single`: one image in few ciphertexts."""
WeightKind = Literal["clear", "encrypted"]

PACKINGS: Final[tuple[Packing, ...]] = ("batch", "single")
WEIGHT_KINDS: Final[tuple[WeightKind, ...]] = ("clear", "encrypted")


@dataclass(frozen=True, slots=True)
class Options:
    """What the one who compiles chooses."""

    packing: Packing = "batch"
    weights: WeightKind = "clear"
    fold: bool = True
    """Batch norms go into the convolutions before them."""
    absorb: bool = True
    """Coefficients of squares and factors of pools go into neighbours."""


@dataclass(frozen=True, slots=True)
class Row:
    """A layer's line of the plan."""

    layer: Layer
    shape: Shape
    before: int
    """Level of what it reads; of two, the lower."""
    after: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Ciphertexts, and exact lengths in bytes of the four blobs."""

    request_ciphertexts: int
    model_ciphertexts: int
    """0 with clear weights."""
    result_ciphertexts: int
    model: int
    keys: int
    relin_keys: int
    """Of the keys, the first part: relinearisation keys."""
    request: int
    result: int


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A network that fits its parameters."""

    network: Network
    """As it is evaluated: folded and absorbed where the options say so."""
    options: Options
    params: CkksParams
    scale_bits: int
    """Bits of the scale that values come back to, and of every prime but the first and the special one."""
    images: int
    """Most images of one request."""
    rows: tuple[Row, ...]
    sizes: Sizes
    counts: Counts
    seconds: float
    """Predicted, of one core, for one request."""
    reasons: tuple[str, ...] = ()
    """Why no smaller ring."""

    @property
    def depth(self) -> int:
        """Levels that evaluation consumes."""
        return self.params.levels - 1

    def describe(self) -> tuple[str, ...]:
        """The plan, in lines for people."""
        params, sizes, options = self.params, self.sizes, self.options
        limit = MAX_MODULUS_BITS.get(params.ring)
        security = "INSECURE, for tests only" if params.insecure else f"at most {limit} for 128-bit security"
        operations = self.counts
        lines = [
            f"parameters   {params.name}",
            *(f"             {reason}" for reason in self.reasons),
            f"packing      {options.packing}, {self.images} images a request, {options.weights} weights",
            f"depth        {self.depth} levels, fold {_switch(options.fold)},"
            f" absorb {_switch(options.absorb)}",
            f"ring         {params.ring}, {sum(params.prime_bits)} bits, {security}",
            f"scale        {self.scale_bits} bits",
        ]
        width = max(len(row.layer.name) for row in self.rows)
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            kind = type(row.layer).__name__
            text = f"  {row.layer.name:<{width}}  {kind:<17} {shape:>10}  {row.before:>2} -> {row.after}"
            lines.append(f"{text}  {row.note}".rstrip())
        lines += [
            f"request      {_bytes(sizes.request)}, {sizes.request_ciphertexts} ciphertexts",
            f"model        {_bytes(sizes.model)}, {sizes.model_ciphertexts} ciphertexts",
            f"keys         {_bytes(sizes.keys)}",
            f"result       {_bytes(sizes.result)}, {sizes.result_ciphertexts} ciphertexts",
            "operations   " + ", ".join(f"{count} {name}" for name, count in _summarise(operations)),
            f"predicted    {self.seconds:.1f} s of one core a request,"
            f" {1e3 * self.seconds / self.images:.3g} ms an image when full",
        ]
        return tuple(lines)


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


_SHOWN = (
    ("products", (Operation.MULTIPLY, Operation.SQUARE)),
    ("products by constants", (Operation.CONSTANT_2, Operation.CONSTANT_3)),
    ("weighted residues", (Operation.WINDOW_CELL,)),
    ("relinearisations", (Operation.RELINEARIZE,)),
    ("rescalings", (Operation.RESCALE_2, Operation.RESCALE_3)),
)


def _summarise(counts: Counts) -> list[tuple[str, int]]:
    totals = [
        (name, sum(count for (operation, _), count in counts.items() if operation in kinds))
        for name, kinds in _SHOWN
    ]
    return [(name, total) for name, total in totals if total]
