"""Shapes, scales and bytes of encrypted fusion: the forward pass alone, on whole images cut into tiles.

A requester encrypts an image's tiles under keys of its own, a peer evaluates F' with a model's public
weights, and the requester decrypts. Two data primes suffice, because nothing is rescaled before the end:

1. z = w * X + b and its square, in three components, keep both primes;
2. F' = sum v z^2 + d is relinearised as a complete sum and then rescaled once, the only two operations
   that round.

The data scale is the largest at which no message can wrap at the model's weights, so that a model of small
weights is evaluated more precisely. It depends on public numbers alone: both sides come to the same one.

Nothing here needs the encryption library.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from he.errors import DepthError, MagnitudeError, ParameterError
from he.formats import HEADER_BYTES, WORD_BYTES, Body, compute_body_bytes
from he.params import CkksParams
from he.plan import Form, compute_ranges
from he.spec import PolynomialSpec

FORWARD_LEVELS = 2
MIN_DATA_BITS = 22
"""Below this scale the noise of encryption could be seen: it is about 2^11 in a slot."""

MAX_TILE = 8
"""Most pixels of a tile's side, without its margin: bounds what one request can ask for."""

TILES_MAGIC = b"BMIFTIL1"
FUSED_MAGIC = b"BMIFFUS1"

_HEADER = struct.Struct("<8s32sHHH18s")


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """One model on tiles of one size: the form of every value, and the places of the ciphertexts."""

    params: CkksParams
    spec: PolynomialSpec
    """`patch` is the side of a tile with its margins, `output` the side of what comes back of it."""
    weights: tuple[int, ...]
    data_bits: int
    digest: bytes
    """Names spec and weights in the headers."""
    input: Form
    hidden: Form
    """z = w * X + b."""
    product: Form
    """sum v z^2 + d before the rescaling."""
    output: Form
    """F'."""

    @property
    def tiles_bytes(self) -> int:
        """Exact length of a blob of encrypted tiles."""
        count = self.spec.inputs * self.spec.patch**2
        return HEADER_BYTES + count * compute_body_bytes(self.params, self.input.level)

    @property
    def fused_bytes(self) -> int:
        """Exact length of a blob of encrypted results."""
        return HEADER_BYTES + self.spec.output**2 * compute_body_bytes(self.params, self.output.level)

    @property
    def relin_bytes(self) -> int:
        """Exact length of the encoded relinearisation keys."""
        words = self.params.levels * 2 * len(self.params.primes) * self.params.ring
        return HEADER_BYTES + words * WORD_BYTES

    @property
    def request_bytes(self) -> int:
        """Exact length of a request: relinearisation keys, then tiles."""
        return self.relin_bytes + self.tiles_bytes

    def get_tile_bodies(self) -> tuple[Body, ...]:
        """Planes [a][i][j]: one ciphertext a plane and pixel of a tile, slots are tiles."""
        return self._lay_out(self.input, self.spec.inputs * self.spec.patch**2)

    def get_fused_bodies(self) -> tuple[Body, ...]:
        """F' [i][j]."""
        return self._lay_out(self.output, self.spec.output**2)

    def _lay_out(self, form: Form, count: int) -> tuple[Body, ...]:
        step = compute_body_bytes(self.params, form.level)
        return tuple(Body(HEADER_BYTES + index * step, form) for index in range(count))

    def build_header(self, magic: bytes) -> bytes:
        """The one valid header: magic, preset, then as uint16 tile side, output side and data scale bits,
        then 18 bytes of the SHA-256 of spec and weights."""
        name = self.params.name.encode("ascii")
        sides = (self.spec.patch, self.spec.output, self.data_bits)
        return _HEADER.pack(magic, name, *sides, self.digest)


def build_tile_spec(spec: PolynomialSpec, tile: int) -> PolynomialSpec:
    """The same network on tiles of `tile` x `tile` results.

    Raises: ParameterError if the side is not in [1, MAX_TILE].
    """
    if not 1 <= tile <= MAX_TILE:
        raise ParameterError(f"tile must lie in [1, {MAX_TILE}], not {tile}")
    return replace(spec, patch=tile + spec.kernel + spec.second - 2)


@lru_cache(maxsize=16)
def build_forward_plan(params: CkksParams, spec: PolynomialSpec, weights: tuple[int, ...]) -> ForwardPlan:
    """The plan of a model under `params`; `spec.patch` is the side of a tile with its margins.

    Raises: DepthError for a preset of other than two data primes; MagnitudeError if the weights are too
    large for a precise result; ParameterError on weights that do not fit the spec, or an insecure preset.
    """
    params.check_security()
    if params.levels != FORWARD_LEVELS:
        raise DepthError(
            f"{params.name} has {params.levels} data primes; encrypted fusion takes exactly {FORWARD_LEVELS}"
        )
    data_bits = _choose_data_bits(params, spec, weights)
    data = Fraction(2**data_bits)
    unit = Fraction(2**params.weight_scale_bits)
    product = (data * unit) ** 2 * unit
    packed = struct.pack(f">{len(weights)}q", *weights)
    return ForwardPlan(
        params=params,
        spec=spec,
        weights=weights,
        data_bits=data_bits,
        digest=hashlib.sha256(spec.encode() + packed).digest()[:18],
        input=Form(FORWARD_LEVELS, data),
        hidden=Form(FORWARD_LEVELS, data * unit),
        product=Form(FORWARD_LEVELS, product),
        output=Form(FORWARD_LEVELS - 1, product / params.primes[FORWARD_LEVELS - 1]),
    )


def compute_output_bound(params: CkksParams, spec: PolynomialSpec, weights: Sequence[int]) -> Fraction:
    """Largest |F'| for any images in [0, 1] and further planes in [-1, 1]; exact."""
    ranges = compute_ranges(spec, spec.split(weights))
    low, high = sum(item.low for item in ranges), sum(item.high for item in ranges)
    return Fraction(max(abs(low), abs(high)), 2 ** (3 * params.weight_scale_bits))


def _choose_data_bits(params: CkksParams, spec: PolynomialSpec, weights: Sequence[int]) -> int:
    """The largest data scale at which F' can't wrap; half of the modulus is kept for noise.

    Nothing else is bounded: sums and squares wrap modulo the primes and come back, since all that leads to
    F' is exact. Only what is rescaled must not have wrapped.
    """
    bound = compute_output_bound(params, spec, weights)
    room = Fraction(params.compute_modulus(FORWARD_LEVELS), 4)
    for bits in range(params.data_scale_bits, MIN_DATA_BITS - 1, -1):
        # A scale alone fills the modulus where F' is small: it counts as 1 at least.
        if max(bound, Fraction(1)) * 2 ** (2 * bits + 3 * params.weight_scale_bits) <= room:
            return bits
    raise MagnitudeError(
        f"F' could reach {float(bound):.4g}, too much for a data scale of 2^{MIN_DATA_BITS}: the weights are"
        " too large for encrypted fusion"
    )
