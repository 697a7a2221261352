"""Who can do what: a public context encrypts and computes, a private one also decrypts."""

from collections.abc import Sequence
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from he.backend import Engine
from he.errors import MissingKeyError, ParameterError
from he.gate import Source, open_source
from he.keys import GaloisKeys, PublicKey, RelinKeys, SecretKey
from he.params import CkksParams
from he.plan import Form
from he.tensor import CiphertextTensor


class PublicContext:
    """Encrypts with a public key, computes with relinearisation and Galois keys, never decrypts."""

    __slots__ = ("_engine", "galois_keys", "params", "public_key", "relin_keys")

    def __init__(
        self,
        params: CkksParams,
        public_key: PublicKey | None = None,
        relin_keys: RelinKeys | None = None,
        galois_keys: GaloisKeys | None = None,
    ) -> None:
        params.check_security()
        for key in (public_key, relin_keys, galois_keys):
            if key is not None and key.params != params:
                raise ParameterError(f"{key!r} does not belong to {params.name}")
        self.params = params
        self.public_key = public_key
        self.relin_keys = relin_keys
        self.galois_keys = galois_keys
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The backend with this context's public keys, made when first needed."""
        if self._engine is None:
            engine = Engine(self.params)
            if self.public_key is not None:
                engine.load_public_key(self.public_key.body)
            if self.relin_keys is not None:
                engine.load_relin_keys(self.relin_keys.body)
            if self.galois_keys is not None:
                engine.load_galois_keys(self.galois_keys.body, self.galois_keys.rotations)
            self._engine = engine
        return self._engine

    def encrypt(self, values: NDArray[np.float64], form: Form) -> CiphertextTensor:
        """Raises: MissingKeyError, MagnitudeError."""
        if self.public_key is None:
            raise MissingKeyError("encryption needs a public key")
        return self.engine.encrypt(values, form)

    def __repr__(self) -> str:
        return f"PublicContext({self.params.name}, {self.public_key!r}, {self.relin_keys!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("contexts are not pickled; send the encoded keys")


class PrivateContext:
    """The key holder's context: decrypts, and encrypts; computing is for public contexts."""

    __slots__ = ("_engine", "_secret_key", "public")

    def __init__(
        self,
        secret_key: SecretKey,
        public_key: PublicKey,
        relin_keys: RelinKeys | None,
        galois_keys: GaloisKeys | None = None,
    ) -> None:
        if secret_key.params != public_key.params:
            raise ParameterError("secret and public key belong to different presets")
        self._secret_key = secret_key
        self.public = PublicContext(secret_key.params, public_key, relin_keys, galois_keys)
        self._engine: Engine | None = None

    @classmethod
    def generate(cls, params: CkksParams, rotations: Sequence[int] = (), *, relin: bool = True) -> Self:
        """New keys, all made in the one object that makes the secret, with those of exactly these rotations
        (ascending); without `relin`, of a circuit that multiplies nothing."""
        bodies = Engine(params).generate_keys(rotations, relin=relin)
        return cls(
            SecretKey(params, bodies.secret),
            PublicKey(params, bodies.public),
            RelinKeys(params, bodies.relin) if relin else None,
            GaloisKeys(params, tuple(rotations), bodies.galois) if rotations else None,
        )

    @property
    def params(self) -> CkksParams:
        return self.public.params

    def save(self) -> bytes:
        """Secret bundle for the holder's own protected storage."""
        parts = [self._secret_key.encode(), self._public_key.encode()]
        for keys in (self.public.relin_keys, self.public.galois_keys):
            if keys is not None:
                parts.append(keys.encode())
        return b"".join(parts)

    @classmethod
    def load(
        cls, params: CkksParams, source: Source, rotations: Sequence[int] = (), *, relin: bool = True
    ) -> Self:
        """What `save` gave, with keys for these rotations, and with or without relinearisation keys.

        Raises: GateError.
        """
        view = open_source(source)
        words = len(params.primes) * params.ring * 8
        first = 64 + words
        second = first + 64 + 2 * words
        third = second + 64 + 2 * words * params.levels if relin else second
        end = third if rotations else len(view)
        return cls(
            SecretKey.decode(params, view[:first]),
            PublicKey.decode(params, view[first : second if relin else end]),
            RelinKeys.decode(params, view[second:end]) if relin else None,
            GaloisKeys.decode(params, tuple(rotations), view[third:]) if rotations else None,
        )

    @property
    def _public_key(self) -> PublicKey:
        if self.public.public_key is None:
            raise MissingKeyError("a private context always has its public key")
        return self.public.public_key

    def _get_engine(self) -> Engine:
        if self._engine is None:
            engine = Engine(self.params)
            engine.load_public_key(self._public_key.body)
            self._secret_key.load_into(engine)
            self._engine = engine
        return self._engine

    def encrypt(self, values: NDArray[np.float64], form: Form) -> CiphertextTensor:
        return self.public.encrypt(values, form)

    def decrypt(self, tensor: CiphertextTensor) -> NDArray[np.float64]:
        """One value a slot, with the scheme's error: round before it leaves the key holder."""
        return self._get_engine().decrypt(tensor)

    def decrypt_body(self, body: memoryview, form: Form) -> NDArray[np.float64]:
        """Decrypts a gated body."""
        engine = self._get_engine()
        return engine.decrypt(engine.load(body, form))

    def decrypt_body_complex(self, body: memoryview, form: Form) -> NDArray[np.complex128]:
        """Decrypts a gated body with the imaginary part of every slot."""
        engine = self._get_engine()
        return engine.decrypt_complex(engine.load(body, form))

    def decrypt_residues(self, body: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Decrypts a gated body to its polynomial, noise included: round before it leaves the key holder."""
        return self._get_engine().decrypt_residues(body)

    def __repr__(self) -> str:
        return f"PrivateContext({self.params.name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private context is never pickled")
