"""The only module that touches Pyfhel; nothing of the library gets past it unguarded.

What it guards against, each seen in Pyfhel 3.5.0 and provoked in the tests: implicit alignment and
swapped operands of its operators, keys made silently under a random secret (to relinearise, and to
rotate), rotations composed of others unasked, a crash when decrypting without a secret key,
evaluation keys made for the wrong secret after a secret key was loaded, levels that are wrong after
loading, scales that differ by rounding, ciphertexts without secret part, and headers or compressed
streams of foreign origin.
"""

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray
from Pyfhel import PyCtxt, Pyfhel, PyPtxt

from he.errors import (
    BuildError,
    ComponentsError,
    DepthError,
    KeyReuseError,
    LevelError,
    MagnitudeError,
    MissingKeyError,
    ParameterError,
    ScaleError,
)
from he.galois import check_rotations, cut_galois_keys, join_galois_keys
from he.headers import Templates, build_templates, check_length
from he.library import (
    CIPHERTEXT_HEADER,
    KEYS_HEADER,
    PLAINTEXT_HEADER,
    RELIN_HEADER,
    SECRET_HEADER,
    WORD,
    Library,
)
from he.params import CkksParams
from he.plan import Form
from he.residues import compute_weighted_sums
from he.scales import ScaleProducts
from he.tensor import CiphertextTensor, Constant, NativeCiphertext, NativePlaintext, PlainVector
from he.vectors import Integers, compute_slots

Buffer = bytes | bytearray | memoryview
Residues = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, repr=False)
class KeyBodies:
    """Raw residues of one key set, made together in one object."""

    secret: bytes
    public: bytes
    relin: bytes
    galois: bytes = b""
    """One part a rotation, in the order of steps."""


def _build_library(params: CkksParams) -> Library:
    params.check_security()
    library = cast(Library, Pyfhel())
    with warnings.catch_warnings():
        # Pyfhel warns that the scale is smaller than the primes; that is the plan's business.
        warnings.simplefilter("ignore")
        status = library.contextGen(
            scheme="CKKS",
            n=params.ring,
            scale=2.0**params.data_scale_bits,
            qi_sizes=list(params.prime_bits),
            sec=0 if params.insecure else 128,
        )
    if not status.startswith("success"):
        raise ParameterError(f"{params.name}: the library refused the parameters: {status}")
    if tuple(library.qi) != params.primes:
        raise ParameterError(f"{params.name}: the library derived other primes than the preset's")
    return library


@lru_cache(maxsize=32)
def _get_templates(params: CkksParams) -> Templates:
    """The same for every engine of these parameters in this process; they hold no key."""
    return build_templates(_build_library(params), params)


class Engine:
    """Arithmetic on ciphertexts of one preset, with whatever keys it was given.

    Every operation checks level, exact scale and components and never aligns anything by itself.
    Methods ending in `_inplace` change their first operand; the others leave operands alone.
    """

    def __init__(self, params: CkksParams) -> None:
        self.params = params
        self._templates = _get_templates(params)
        self._library = _build_library(params)
        self._has_public = False
        self._has_secret = False
        self._has_relin = False
        self._rotations: frozenset[int] = frozenset()
        self._headers: dict[tuple[int, int, Fraction], bytes] = {}
        self._products = ScaleProducts()
        self._inverse_primes = tuple(Fraction(1, prime) for prime in params.primes)
        self._moduli = tuple(params.compute_modulus(level) for level in range(1, params.levels + 1))

    def __repr__(self) -> str:
        keys = (("public", self._has_public), ("secret", self._has_secret), ("relin", self._has_relin))
        return f"Engine({self.params.name}, keys={[name for name, held in keys if held]})"

    def __reduce__(self) -> str:
        raise TypeError("an engine may hold a secret key and is never pickled")

    # --- keys ---------------------------------------------------------------------------------

    @property
    def has_secret(self) -> bool:
        return self._has_secret

    @property
    def has_relin(self) -> bool:
        return self._has_relin

    @property
    def rotations(self) -> frozenset[int]:
        """Steps that there are keys for."""
        return self._rotations

    def generate_keys(self, rotations: Sequence[int] = (), *, relin: bool = True) -> KeyBodies:
        """Makes a whole new key set, all in the object that makes the secret, with keys for exactly these
        rotations.

        Raises: KeyReuseError if this engine holds any key: keys added to a loaded secret would
        silently belong to another one; ParameterError on steps that are not ascending ones of a rotation.
        """
        if self._has_public or self._has_secret or self._has_relin or self._rotations:
            raise KeyReuseError("keys are made once, in a fresh engine")
        check_rotations(self.params, rotations)
        self._library.keyGen()
        self._has_public = self._has_secret = True
        bodies: list[memoryview] = []
        if relin:
            self._library.relinKeyGen()
            self._has_relin = True
            keys = memoryview(self._library.to_bytes_relin_key("none"))
            part = self._key_bytes + CIPHERTEXT_HEADER
            bodies = [
                keys[RELIN_HEADER + index * part + CIPHERTEXT_HEADER : RELIN_HEADER + (index + 1) * part]
                for index in range(self.params.levels)
            ]
        galois = b""
        if rotations:
            self._library.rotateKeyGen(list(rotations))
            self._rotations = frozenset(rotations)
            data = self._library.to_bytes_rotate_key("none")
            galois = cut_galois_keys(self.params, rotations, data)
        return KeyBodies(
            secret=self._library.to_bytes_secret_key("none")[SECRET_HEADER:],
            public=self._library.to_bytes_public_key("none")[CIPHERTEXT_HEADER:],
            relin=b"".join(bodies),
            galois=galois,
        )

    def load_public_key(self, body: Buffer) -> None:
        """Takes a gated body."""
        self._check_no_key(self._has_public)
        self._library.from_bytes_public_key(self._templates.public_key + bytes(body))
        self._has_public = True

    def load_secret_key(self, body: Buffer) -> None:
        """Takes a gated body; the public key must be loaded first, else the library can't decrypt."""
        self._check_no_key(self._has_secret)
        if not self._has_public:
            raise MissingKeyError("load the public key before the secret key")
        self._library.from_bytes_secret_key(self._templates.secret_key + bytes(body))
        self._has_secret = True

    def load_relin_keys(self, body: Buffer) -> None:
        """Takes a gated body."""
        self._check_no_key(self._has_relin)
        view = memoryview(body)
        parts = [self._templates.relin_keys]
        for index in range(self.params.levels):
            parts.append(self._templates.public_key)
            parts.append(bytes(view[index * self._key_bytes : (index + 1) * self._key_bytes]))
        self._library.from_bytes_relin_key(b"".join(parts))
        self._has_relin = True

    def load_galois_keys(self, body: Buffer, rotations: Sequence[int]) -> None:
        """Takes a gated body: one part for each of these steps, in their order."""
        self._check_no_key(bool(self._rotations))
        check_rotations(self.params, rotations)
        if not rotations:
            return
        header = self._templates.relin_keys[:KEYS_HEADER]
        self._library.from_bytes_rotate_key(
            join_galois_keys(self.params, rotations, body, header, self._templates.public_key)
        )
        self._rotations = frozenset(rotations)

    def _check_no_key(self, held: bool) -> None:
        if held:
            raise KeyReuseError("a key of this kind is already loaded")

    @property
    def _key_bytes(self) -> int:
        return 2 * len(self.params.primes) * self.params.ring * WORD

    # --- in and out ---------------------------------------------------------------------------

    def encrypt(self, values: NDArray[np.float64], form: Form) -> CiphertextTensor:
        """A fresh ciphertext of one value a slot, zeros behind; not reproducible.

        Raises: MissingKeyError; MagnitudeError if a value is not finite or would wrap.
        """
        if not self._has_public:
            raise MissingKeyError("encryption needs a public key")
        vector = np.ascontiguousarray(values, dtype=np.float64)
        if vector.ndim != 1 or not 1 <= vector.size <= self.params.slots:
            raise ParameterError(f"expected 1 to {self.params.slots} values, got shape {vector.shape}")
        self._check_level(form.level)
        largest = float(np.max(np.abs(vector)))
        if not largest * float(form.scale) * 4 < self.params.compute_modulus(form.level):
            raise MagnitudeError(f"a value of {largest:.4g} wraps at level {form.level}")
        native = self._library.encryptFrac(vector, scale=float(form.scale))
        for _ in range(self.params.levels - form.level):
            self._library.mod_switch_to_next_ctxt(native)
        native.set_scale(float(form.scale))
        return CiphertextTensor(native, form.level, form.scale, 2)

    def decrypt(self, tensor: CiphertextTensor) -> NDArray[np.float64]:
        """One value a slot.

        Raises: MissingKeyError without a secret key, where the library would crash.
        """
        if not self._has_secret:
            raise MissingKeyError("decryption needs the secret key")
        return np.array(self._library.decryptFrac(tensor.native), dtype=np.float64)

    def decrypt_complex(self, tensor: CiphertextTensor) -> NDArray[np.complex128]:
        """One value a slot with its imaginary part, which no circuit here uses and a sender could.

        Raises: MissingKeyError.
        """
        if not self._has_secret:
            raise MissingKeyError("decryption needs the secret key")
        return np.array(self._library.decryptComplex(tensor.native), dtype=np.complex128)

    def encrypt_residues(self, message: Residues) -> Residues:
        """(2, levels, N) of a fresh ciphertext of exactly this polynomial (levels, N), in the transform's
        domain and below its primes; not reproducible.

        Raises: MissingKeyError.
        """
        if not self._has_public:
            raise MissingKeyError("encryption needs a public key")
        shape = (self.params.levels, self.params.ring)
        if message.shape != shape:
            raise ParameterError(f"expected a polynomial of shape {shape}, got {message.shape}")
        content = self._templates.plaintext[self.params.levels - 1] + message.astype("<u8").tobytes()
        native = self._library.encryptPtxt(
            cast(NativePlaintext, PyPtxt(pyfhel=self._library, bytestring=content))
        )
        body = self.save(CiphertextTensor(native, self.params.levels, Fraction(1), 2))
        return np.frombuffer(body, dtype="<u8").reshape(2, *shape).astype(np.uint64)

    def decrypt_residues(self, body: Residues) -> Residues:
        """(levels, N): the polynomial, with its noise, of a gated body (2, levels, N); as exact as it is.

        Raises: MissingKeyError without a secret key, where the library would crash.
        """
        if not self._has_secret:
            raise MissingKeyError("decryption needs the secret key")
        tensor = self.load(body, Form(self.params.levels, Fraction(1)))
        data = self._library.decryptPtxt(tensor.native).to_bytes("none")
        shape = (self.params.levels, self.params.ring)
        check_length(data, PLAINTEXT_HEADER + self.params.levels * self.params.ring * WORD)
        return np.frombuffer(data, dtype="<u8", offset=PLAINTEXT_HEADER).reshape(shape).astype(np.uint64)

    def load(self, body: Buffer | Residues, form: Form, *, components: int = 2) -> CiphertextTensor:
        """A ciphertext from a gated body; its header is made here."""
        self._check_level(form.level)
        data = body.tobytes() if isinstance(body, np.ndarray) else body
        expected = components * form.level * self.params.ring * WORD
        if len(data) != expected:
            raise LevelError(f"a body of {len(data)} bytes is no ciphertext of level {form.level}")
        content = b"".join((self._get_header(form.level, components, form.scale), data))
        native = cast(NativeCiphertext, PyCtxt(pyfhel=self._library, bytestring=content))
        return CiphertextTensor(native, form.level, form.scale, components)

    def save(self, tensor: CiphertextTensor) -> memoryview:
        """The body of `tensor`.

        Raises: BuildError if the library's idea of the ciphertext is not the tracked one.
        """
        data = tensor.native.to_bytes("none")
        check_length(data, CIPHERTEXT_HEADER + tensor.components * tensor.level * self.params.ring * WORD)
        if data[:CIPHERTEXT_HEADER] != self._get_header(tensor.level, tensor.components, tensor.scale):
            raise BuildError(f"the library disagrees about {tensor!r}")
        return memoryview(data)[CIPHERTEXT_HEADER:]

    def build_constant(self, value: int, form: Form) -> Constant:
        """The integer `value` in every slot, exactly, as residues; `form.scale` says what it means."""
        self._check_level(form.level)
        primes = self.params.primes[: form.level]
        if 4 * abs(value) >= self.params.compute_modulus(form.level):
            raise MagnitudeError(f"the constant {value} wraps at level {form.level}")
        residues = np.array([value % prime for prime in primes], dtype="<u8")
        header = bytearray(self._templates.plaintext[form.level - 1])
        # Offset 56: behind the outer header (16), the parameters' id (32) and the coefficient count (8).
        struct.pack_into("<d", header, 56, float(form.scale))
        content = bytes(header) + np.repeat(residues, self.params.ring).tobytes()
        native = cast(NativePlaintext, PyPtxt(pyfhel=self._library, bytestring=content))
        return Constant(native, form.level, form.scale)

    def load_vector(self, coefficients: Integers, form: Form, *, factor_bits: int = 0) -> PlainVector:
        """The vector of slots with exactly these coefficients (see `he.vectors`) times 2^factor_bits,
        repeated to fill the slots.

        Raises: MagnitudeError; ParameterError on a period longer than the slots.
        """
        self._check_level(form.level)
        if len(coefficients) > self.params.slots:
            raise ParameterError(
                f"a vector of {len(coefficients)} values; there are {self.params.slots} slots"
            )
        slots = np.tile(compute_slots(coefficients), self.params.slots // len(coefficients))
        native = self._library.encodeFrac(slots, scale=1.0)
        for _ in range(self.params.levels - form.level):
            native = self._library.mod_switch_to_next_ptxt(native, True)
        if factor_bits:
            native = self._enlarge(native, form.level, factor_bits)
        native.set_scale(float(form.scale))
        return PlainVector(native, form.level, form.scale)

    def _enlarge(self, native: NativePlaintext, level: int, factor_bits: int) -> NativePlaintext:
        """Times 2^factor_bits, exactly, where the product is too large for the encoder's doubles."""
        content = bytearray(cast(PyPtxt, native).to_bytes("none"))
        shape = (level, self.params.ring)
        residues = np.frombuffer(content, dtype="<u8", offset=PLAINTEXT_HEADER).reshape(shape)
        factor = np.array([[1 << factor_bits]], dtype=np.int64)
        for index, prime in enumerate(self.params.primes[:level]):
            compute_weighted_sums(
                residues[index : index + 1].copy(), factor, prime, residues[index : index + 1]
            )
        return cast(NativePlaintext, PyPtxt(pyfhel=self._library, bytestring=bytes(content)))

    def _get_header(self, level: int, components: int, scale: Fraction) -> bytes:
        key = (level, components, scale)
        header = self._headers.get(key)
        if header is None:
            header = self._build_header(level, components, float(scale))
            self._headers[key] = header
        return header

    def _build_header(self, level: int, components: int, scale: float) -> bytes:
        """The library's header: sizes, id of the parameters, components, scale, count of words."""
        words = components * level * self.params.ring
        header = bytearray(self._templates.ciphertext[level - 1])
        struct.pack_into("<Q", header, 8, CIPHERTEXT_HEADER + words * WORD)
        struct.pack_into("<Q", header, 49, components)
        struct.pack_into("<d", header, 73, scale)
        struct.pack_into("<Q", header, 97, 24 + words * WORD)
        struct.pack_into("<Q", header, 105, words)
        return bytes(header)

    # --- arithmetic ---------------------------------------------------------------------------

    def copy(self, tensor: CiphertextTensor) -> CiphertextTensor:
        return CiphertextTensor(tensor.native.copy(), tensor.level, tensor.scale, tensor.components)

    def add_inplace(self, total: CiphertextTensor, other: CiphertextTensor) -> None:
        self._check_alike(total, other)
        self._library.add(total.native, other.native, False)
        total.components = max(total.components, other.components)

    def subtract_inplace(self, total: CiphertextTensor, other: CiphertextTensor) -> None:
        """total - other, in this order; the result may be transparent and is not sent anywhere then."""
        self._check_alike(total, other)
        self._library.sub(total.native, other.native, False)
        total.components = max(total.components, other.components)

    def divide_inplace(self, tensor: CiphertextTensor, divisor: int) -> None:
        """By stating a scale as many times larger: exact, and nothing is computed."""
        restated = self._track(tensor.native, tensor.level, tensor.scale * divisor, tensor.components)
        tensor.scale = restated.scale

    def negate_inplace(self, tensor: CiphertextTensor) -> None:
        self._library.negate(tensor.native, False)

    def add_constant_inplace(self, total: CiphertextTensor, constant: Constant) -> None:
        self._check_alike(total, constant)
        self._library.add_plain(total.native, constant.native, False)

    def add_vector_inplace(self, total: CiphertextTensor, vector: PlainVector) -> None:
        self._check_alike(total, vector)
        self._library.add_plain(total.native, vector.native, False)

    def multiply_vector(self, tensor: CiphertextTensor, vector: PlainVector) -> CiphertextTensor:
        """The product slot by slot."""
        self._check_level_alike(tensor, vector)
        native = self._library.multiply_plain(tensor.native, vector.native, True)
        scale = self._products.get(tensor.scale, vector.scale)
        return self._track(native, tensor.level, scale, tensor.components)

    def rotate(self, tensor: CiphertextTensor, step: int) -> CiphertextTensor:
        """Slot j takes what was in slot j + step, cyclically; one switch of keys.

        Raises: MissingKeyError without the key of this very step, where the library would make keys of its
        own or compose the rotation of others.
        """
        if step not in self._rotations:
            raise MissingKeyError(f"there is no rotation key for {step} steps")
        if tensor.components != 2:
            raise ComponentsError("relinearise before rotating")
        native = self._library.rotate(tensor.native, step, True)
        native.set_scale(float(tensor.scale))
        return CiphertextTensor(native, tensor.level, tensor.scale, 2)

    def multiply_constant(self, tensor: CiphertextTensor, constant: Constant) -> CiphertextTensor:
        """Zero constants are multiplied like any other."""
        self._check_level_alike(tensor, constant)
        native = self._library.multiply_plain(tensor.native, constant.native, True)
        scale = self._products.get(tensor.scale, constant.scale)
        return self._track(native, tensor.level, scale, tensor.components)

    def multiply(self, a: CiphertextTensor, b: CiphertextTensor) -> CiphertextTensor:
        """The product in three components."""
        self._check_level_alike(a, b)
        if a.components != 2 or b.components != 2:
            raise ComponentsError("relinearise factors first")
        native = self._library.multiply(a.native, b.native, True)
        return self._track(native, a.level, self._products.get(a.scale, b.scale), 3)

    def square(self, tensor: CiphertextTensor) -> CiphertextTensor:
        """The square in three components."""
        if tensor.components != 2:
            raise ComponentsError("relinearise before squaring")
        native = self._library.square(tensor.native, True)
        return self._track(native, tensor.level, self._products.get(tensor.scale, tensor.scale), 3)

    def relinearize_inplace(self, tensor: CiphertextTensor) -> None:
        """Raises: MissingKeyError without keys, where the library would make some of its own."""
        if not self._has_relin:
            raise MissingKeyError("relinearisation needs relinearisation keys")
        if tensor.components != 3:
            raise ComponentsError(f"relinearisation takes three components, not {tensor.components}")
        self._library.relinearize(tensor.native)
        tensor.components = 2

    def rescale_inplace(self, tensor: CiphertextTensor) -> None:
        """Divides message and modulus by the level's last prime.

        Raises: DepthError at the last level.
        """
        if tensor.level <= 1:
            raise DepthError("no level is left to rescale")
        self._library.rescale_to_next(tensor.native)
        tensor.level -= 1
        tensor.scale = self._products.get(tensor.scale, self._inverse_primes[tensor.level])
        tensor.native.set_scale(float(tensor.scale))

    def drop_inplace(self, tensor: CiphertextTensor, level: int) -> None:
        """Takes the same message modulo fewer primes, without noise.

        Raises: DepthError if the tensor is already below `level`.
        """
        self._check_level(level)
        if tensor.level < level:
            raise DepthError(f"a ciphertext of level {tensor.level} can't go up to {level}")
        while tensor.level > level:
            self._library.mod_switch_to_next_ctxt(tensor.native)
            tensor.level -= 1

    def _track(
        self, native: NativeCiphertext, level: int, scale: Fraction, components: int
    ) -> CiphertextTensor:
        if scale.numerator >= self._moduli[level - 1] * scale.denominator:
            raise MagnitudeError(f"the scale 2^{scale.__floor__().bit_length()} exceeds level {level}")
        native.set_scale(float(scale))
        return CiphertextTensor(native, level, scale, components)

    def _check_level(self, level: int) -> None:
        if not 1 <= level <= self.params.levels:
            raise LevelError(f"levels are 1 to {self.params.levels}, not {level}")

    def _check_level_alike(self, a: CiphertextTensor, b: CiphertextTensor | Constant | PlainVector) -> None:
        if a.level != b.level:
            raise LevelError(f"operands of levels {a.level} and {b.level}")

    def _check_alike(self, a: CiphertextTensor, b: CiphertextTensor | Constant | PlainVector) -> None:
        self._check_level_alike(a, b)
        # The usual case is one object, and comparing fractions costs as much as adding ciphertexts.
        if a.scale is not b.scale and a.scale != b.scale:
            raise ScaleError(f"operands of scales {float(a.scale):.17g} and {float(b.scale):.17g}")
