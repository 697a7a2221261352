"""The requester's side: one image encrypted, its result decrypted."""

import numpy as np

from he.context import PrivateContext, PublicContext
from he.errors import MagnitudeError, ParameterError
from he.formats import HEADER_BYTES
from he.gate import Source
from he.single.blobs import (
    SingleMagic,
    build_single_header,
    check_result,
    get_request_bodies,
    get_result_bodies,
)
from he.single.layout import SinglePlan
from he.single.matrices import Floats

MAX_VALUE = 16.0
"""Largest pixel, before or after normalisation."""


def encrypt_image(context: PrivateContext | PublicContext, plan: SinglePlan, image: Floats) -> bytes:
    """The request for `image` (C, H, W).

    Raises: ParameterError on another shape or key; MagnitudeError on values that are not finite or too large.
    """
    if image.shape != plan.image.shape:
        raise ParameterError(f"image: expected shape {plan.image.shape}, got {image.shape}")
    if not bool((np.abs(image) <= MAX_VALUE).all()):
        raise MagnitudeError(f"image: values must be finite, from -{MAX_VALUE:g} to {MAX_VALUE:g}")
    if context.params != plan.params:
        raise ParameterError(f"{context!r} does not belong to {plan.params.name}")
    engine = (context.public if isinstance(context, PrivateContext) else context).engine
    layout = plan.image
    ciphertexts, slots = layout.get_places()
    flat = np.asarray(image, dtype=np.float64).ravel()
    blob = bytearray(plan.request_bytes)
    blob[:HEADER_BYTES] = build_single_header(plan, SingleMagic.REQUEST)
    for index, body in enumerate(get_request_bodies(plan)):
        values = np.zeros(layout.period)
        values[slots[ciphertexts == index]] = flat[ciphertexts == index]
        repeated = np.tile(values, layout.slots // layout.period)
        data = engine.save(context.encrypt(repeated, body.form)).tobytes()
        blob[body.offset : body.offset + len(data)] = data
    return bytes(blob)


def decrypt_result(private: PrivateContext, plan: SinglePlan, source: Source) -> Floats:
    """(outputs,) of a peer's result, with the scheme's error.

    Raises: GateError.
    """
    view = check_result(plan, source)
    layout = plan.output.layout
    ciphertexts, slots = layout.get_places()
    columns = [
        private.decrypt_body(view[body.offset : body.offset + body.get_length(plan.params)], body.form)
        for body in get_result_bodies(plan)
    ]
    return np.stack(columns)[ciphertexts, slots]
