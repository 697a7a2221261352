"""Encrypted diagnosis: the model's owner, the requester and the evaluator, in either packing.

The evaluator has relinearisation (and, in single packing, rotation) keys and decrypts nothing. With encrypted
weights, model and images are under one key pair: whoever holds its secret key reads both, so that the one who
asks and the one who owns the model trust its holder (as Ran and Li do, JIIM 2025).
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np

from he.compiler import get_weight_forms, plan_program
from he.context import PrivateContext, PublicContext
from he.envelope import (
    DiagnosisMagic,
    build_diagnosis_header,
    build_model_head,
    check_keys,
    check_model,
    check_request,
    check_result,
    get_request_bodies,
    get_result_bodies,
    get_single_plan,
)
from he.errors import MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES
from he.gate import Source
from he.keys import GaloisKeys, RelinKeys
from he.layers.evaluate import BatchEvaluation, place_weights
from he.magnitudes import INPUT_BOUND
from he.network import BatchNorm, Convolution, Dense, Floats, compute_shapes
from he.program import Program

Report = Callable[[int, int], None]
"""Told (done, total)."""


def _ignore(done: int, total: int) -> None:
    """For callers that do not ask how far it is."""


# --- the model's owner ------------------------------------------------------------------------


def encode_model(program: Program) -> bytes:
    """The bytes of a model with clear weights.

    Raises: ParameterError if the program is for encrypted ones.
    """
    if program.options.weights != "clear":
        raise ParameterError("this program is for encrypted weights")
    head = build_model_head(program)
    if program.options.packing == "single":
        from he.single.model import encode_model as encode_single

        return head + encode_single(get_single_plan(program), program.network)
    return head


def encrypt_model(context: PublicContext, program: Program, report: Report = _ignore) -> bytes:
    """The bytes of a model under a public key: the one that images will be encrypted under.

    Raises: ParameterError if the program is for clear weights or the key for other parameters;
    MissingKeyError without a public key; MagnitudeError.
    """
    if program.options.weights != "encrypted":
        raise ParameterError("this program is for clear weights")
    _check_params(context, program)
    head = build_model_head(program)
    if program.options.packing == "single":
        from he.single.model import encrypt_model as encrypt_single

        return head + encrypt_single(context, get_single_plan(program), program.network)
    blob, done = bytearray(program.sizes.model), 0
    blob[: len(head)] = head
    offset = len(head)
    for step, weight, bias, _, _ in get_weight_forms(program.options, plan_program(program)):
        layer = step.layer
        if isinstance(layer, BatchNorm):
            arrays = ((layer.scale, weight), (layer.shift, bias))
        elif isinstance(layer, Convolution | Dense):
            arrays = ((layer.weights, weight), (layer.bias, bias))
        else:
            raise ParameterError(f"layer {layer.name!r} has no weights")
        for values, form in arrays:
            for value in values.flat:
                data = context.engine.save(context.encrypt(np.full(program.params.slots, value), form))
                blob[offset : offset + len(data)] = data
                offset += len(data)
                done += 1
                report(done, program.sizes.model_ciphertexts)
    return bytes(blob)


# --- the requester ----------------------------------------------------------------------------


def make_keys(program: Program) -> PrivateContext:
    """New keys for this program: encryption, relinearisation and, in single packing, its rotations."""
    if program.options.packing == "single":
        return PrivateContext.generate(program.params, get_single_plan(program).rotations)
    return PrivateContext.generate(program.params)


def encode_keys(private: PrivateContext) -> bytes:
    """What the evaluator needs."""
    public = private.public
    if public.relin_keys is None:
        raise MissingKeyError("no relinearisation keys were made")
    galois = b"" if public.galois_keys is None else public.galois_keys.encode()
    return public.relin_keys.encode() + galois


def encode_public_key(private: PrivateContext) -> bytes:
    """What the owner of a model needs, to encrypt its weights."""
    if private.public.public_key is None:
        raise MissingKeyError("no public key was made")
    return private.public.public_key.encode()


def encrypt_images(
    context: PublicContext | PrivateContext, program: Program, images: Floats, report: Report = _ignore
) -> bytes:
    """The request for `images` (B, C, H, W), normalised as the model wants them; slots behind are zero.

    Raises: ParameterError on a wrong shape or number; MagnitudeError on values that are not finite or large.
    """
    public = context.public if isinstance(context, PrivateContext) else context
    _check_params(public, program)
    if images.ndim != 4 or not 1 <= len(images) <= program.images:
        raise ParameterError(f"images: expected 1 to {program.images} of them, got shape {images.shape}")
    if images.shape[1:] != program.network.shape:
        raise ParameterError(f"images: expected shape {program.network.shape}, got {images.shape[1:]}")
    if not bool((np.abs(images) <= INPUT_BOUND).all()):
        raise MagnitudeError(f"images: values must be finite and lie in [-{INPUT_BOUND:g}, {INPUT_BOUND:g}]")
    if program.options.packing == "single":
        from he.single.requests import encrypt_image

        return encrypt_image(public, get_single_plan(program), images[0])
    blob, bodies = bytearray(program.sizes.request), get_request_bodies(program)
    blob[:HEADER_BYTES] = build_diagnosis_header(program, DiagnosisMagic.REQUEST)
    columns = images.reshape(len(images), -1).T
    for index, (body, column) in enumerate(zip(bodies, columns, strict=True)):
        data = public.engine.save(public.encrypt(column, body.form))
        blob[body.offset : body.offset + len(data)] = data
        report(index + 1, len(bodies))
    return bytes(blob)


_LOST_BITS: Final = MappingProxyType(
    {
        ("batch", "clear"): 1,
        ("batch", "encrypted"): 7,
        ("single", "clear"): 2,
        ("single", "encrypted"): 0,
    }
)
"""By how many bits fewer a result is exact than scale and ring alone say, measured on trained networks of two
blocks (docs/DIAGNOSIS.md)."""


def get_rounding_bits(program: Program) -> int:
    """Results are rounded to multiples of 2 to minus this: coarser than the error that was measured, which
    is a function of the secret key (Li and Micciancio 2021)."""
    lost = _LOST_BITS[program.options.packing, program.options.weights]
    return program.scale_bits - program.params.ring.bit_length() - 2 - lost


def decrypt_result(private: PrivateContext, program: Program, result: Source, count: int) -> Floats:
    """(count, outputs) of a result, rounded to the measured precision.

    Raises: GateError.
    """
    if program.options.packing == "single":
        from he.single.requests import decrypt_result as decrypt_single

        values = decrypt_single(private, get_single_plan(program), result)[None]
    else:
        view = check_result(program, result)
        columns = [
            private.decrypt_body(
                view[body.offset : body.offset + body.get_length(program.params)], body.form
            )[:count]
            for body in get_result_bodies(program)
        ]
        values = np.stack(columns, axis=1)
    unit = 2.0 ** get_rounding_bits(program)
    return np.asarray(np.rint(values * unit) / unit)


# --- the evaluator ----------------------------------------------------------------------------


def load_keys(program: Program, source: Source) -> PublicContext:
    """An evaluator's context of gated keys.

    Raises: GateError.
    """
    relin, galois = check_keys(program, source)
    keys = RelinKeys.decode(program.params, relin)
    if program.options.packing == "batch":
        return PublicContext(program.params, relin_keys=keys)
    rotations = GaloisKeys.decode(program.params, get_single_plan(program).rotations, galois)
    return PublicContext(program.params, relin_keys=keys, galois_keys=rotations)


class Evaluator:
    """A model and keys, gated and loaded once for any number of requests; holds no secret key."""

    def __init__(self, program: Program, model: Source, keys: Source | PublicContext) -> None:
        """Raises: GateError on malformed bytes; MissingKeyError without keys; ParameterError on keys for
        other parameters."""
        self.program = program
        self.context = keys if isinstance(keys, PublicContext) else load_keys(program, keys)
        _check_params(self.context, program)
        if self.context.relin_keys is None:
            raise MissingKeyError("a diagnosis needs relinearisation keys")
        self._model, start = check_model(program, model), len(build_model_head(program))
        if program.options.packing == "single":
            from he.single.model import load_model

            self._single = load_model(self.context, get_single_plan(program), self._model[start:])
        else:
            self._weights = place_weights(program, self._model, start)

    def compute(self, request: Source, report: Report = _ignore) -> bytes:
        """The canonical result of a request; `report` is told how many rows of how many are done.

        Raises: GateError on a malformed request.
        """
        program = self.program
        if program.options.packing == "single":
            from he.single.circuit import run_single

            return run_single(self.context, get_single_plan(program), self._single, request)
        view, engine = check_request(program, request), self.context.engine
        evaluation = BatchEvaluation(engine, program, self._weights, view, report)
        blob, bodies = bytearray(program.sizes.result), get_result_bodies(program)
        blob[:HEADER_BYTES] = build_diagnosis_header(program, DiagnosisMagic.RESULT)
        height = compute_shapes(program.network)[program.network.layers[-1].name][1]
        for i, row in evaluation.run():
            for c, j in np.ndindex(*row.shape[:2]):
                body = bodies[(c * height + i) * row.shape[1] + j]
                blob[body.offset : body.offset + body.get_length(program.params)] = row[c, j].tobytes()
        return bytes(blob)


def compute_result(
    context: PublicContext, program: Program, model: Source, request: Source, report: Report = _ignore
) -> bytes:
    """The canonical result of one request: see `Evaluator`."""
    return Evaluator(program, model, context).compute(request, report)


def _check_params(context: PublicContext, program: Program) -> None:
    if context.params != program.params:
        raise ParameterError(f"{context!r} does not belong to {program.params.name}")
