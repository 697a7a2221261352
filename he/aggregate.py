"""Exact sums of encrypted integer vectors: updates that anybody adds up and that are opened as a sum alone.

A participant encrypts the integers of its weighted update under the federation's public key; whoever has the
updates adds them up without any key; the key's holder decrypts the sum to exactly the sum of the integers
(`he.aggregate_plan` shows why). Adding residues modulo primes is exact and the same in any order, so
everybody gets the sum's very bytes, and decryption rounds the scheme's noise away, so that none of it leaves.

Bytes: a 64-byte header, of which there is one valid value for each plan and number of updates, so it is
compared, never parsed; then residues in the library's order [ciphertext][component][prime][coefficient], in
its transform's domain, each packed to the width of its prime (`he.lanes`).

What is refused and what is not: a well-formed update may hold any numbers, since nobody can look into it. One
outside its range spoils the sum, of which every value lies within the plan's capacity even then. Anybody can
also negate ciphertexts: a participant that sees the others' updates before it posts its own can post the
negative of some, and the sum is of the rest. What protects a single update then is not the sum but the noise
that the key's holder adds to what it opens.

Only encrypting and decrypting need the library.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from he.aggregate_plan import MAX_UPDATES, AggregateMagic, AggregatePlan, plan_aggregate
from he.errors import GateError, GateReason, MagnitudeError, MissingKeyError, ParameterError
from he.formats import HEADER_BYTES
from he.gate import Source, check_header, check_length, open_source
from he.lanes import compute_packed_bytes, pack, unpack
from he.transform import invert, multiply_modulo, transform

if TYPE_CHECKING:
    from he.context import PrivateContext, PublicContext

__all__ = [
    "MAX_UPDATES",
    "AggregatePlan",
    "add_updates",
    "check_sum",
    "check_update",
    "decrypt_sum",
    "encode_private",
    "encode_public_key",
    "encrypt_update",
    "load_private",
    "load_public_key",
    "make_aggregate_keys",
    "plan_aggregate",
]

Integers = NDArray[np.int64]
Residues = NDArray[np.uint64]

MIN_SUMMED = 2
"""Updates of a sum that may be opened: one alone would be a participant's."""


# --- keys -------------------------------------------------------------------------------------


def make_aggregate_keys(plan: AggregatePlan) -> "PrivateContext":
    """New keys, of the key's holder alone."""
    from he.context import PrivateContext

    return PrivateContext.generate(plan.params, relin=False)


def encode_private(private: "PrivateContext") -> bytes:
    """For the holder's own protected storage; never for a peer."""
    return private.save()


def load_private(plan: AggregatePlan, source: Source) -> "PrivateContext":
    """What `encode_private` gave.

    Raises: GateError.
    """
    from he.context import PrivateContext

    return PrivateContext.load(plan.params, source, relin=False)


def encode_public_key(context: "PrivateContext | PublicContext") -> bytes:
    """What participants encrypt with; public."""
    from he.context import PrivateContext

    key = (context.public if isinstance(context, PrivateContext) else context).public_key
    if key is None:
        raise MissingKeyError("this context has no public key")
    return key.encode()


def load_public_key(plan: AggregatePlan, source: Source) -> "PublicContext":
    """A context that encrypts updates and can do nothing else.

    Raises: GateError.
    """
    from he.context import PublicContext
    from he.keys import PublicKey

    return PublicContext(plan.params, PublicKey.decode(plan.params, source))


# --- encrypting -------------------------------------------------------------------------------


def encrypt_update(
    public: "PublicContext", plan: AggregatePlan, values: Integers, *, weight: int | None = None
) -> bytes:
    """The update of `values` (P,), already multiplied by the participant's weight; not reproducible.

    Values are at most `plan.bound` times `weight` in magnitude; without `weight`, at most the plan's
    capacity, which leaves nothing for others.

    Raises: ParameterError on another shape, type, weight or key; MagnitudeError with the index of the first
    value out of range.
    """
    if public.params != plan.params:
        raise ParameterError(f"{public!r} does not belong to {plan.params.name}")
    if values.shape != (plan.parameters,) or values.dtype != np.int64:
        raise ParameterError(
            f"values: expected int64 of shape ({plan.parameters},), got {values.dtype} of {values.shape}"
        )
    if weight is not None and not 1 <= weight <= plan.weights_total:
        raise ParameterError(f"weight must lie in [1, {plan.weights_total}], not {weight}")
    limit = plan.capacity if weight is None else plan.bound * weight
    outside = (values > limit) | (values < -limit)
    if bool(outside.any()):
        index = int(np.argmax(outside))
        raise MagnitudeError(
            f"values[{index}] = {int(values[index])} lies outside [-{limit}, {limit}]: clip before encrypting"
        )
    parts = [plan.build_header(AggregateMagic.UPDATE, 1)]
    for message in _encode(plan, values):
        body = public.engine.encrypt_residues(message)
        for component in body:
            parts += [pack(row, width) for row, width in zip(component, plan.widths, strict=True)]
    return b"".join(parts)


def _encode(plan: AggregatePlan, values: Integers) -> Iterator[Residues]:
    """(levels, N) of each ciphertext's polynomial D m: value (t d + j) N + c is digit j of coefficient c of
    ciphertext t."""
    ring, digits = plan.params.ring, plan.digits
    for start in range(0, plan.parameters, ring * digits):
        block = np.zeros(ring * digits, dtype=np.int64)
        part = values[start : start + ring * digits]
        block[: len(part)] = part
        rows = []
        for prime in plan.primes:
            total = np.zeros(ring, dtype=np.int64)
            for digit, row in enumerate(block.reshape(digits, ring)):
                total += multiply_modulo(row % prime, plan.delta * plan.radix**digit % prime, prime)
            rows.append(transform(total % prime, prime))
        yield np.stack(rows).view(np.uint64)


# --- the gate ---------------------------------------------------------------------------------


def check_update(plan: AggregatePlan, source: Source) -> None:
    """Returns only for a well-formed update of this very plan: the one header, the exact length, residues
    below their primes, and a secret part in every ciphertext.

    Raises: GateError.
    """
    view = _open(plan, source, AggregateMagic.UPDATE, 1)
    for ciphertext in range(plan.ciphertexts):
        secret = False
        for component in range(2):
            for level in range(len(plan.primes)):
                row = _read_row(plan, view, ciphertext, component, level)
                secret = secret or (component == 1 and bool(row.any()))
        if not secret:
            raise GateError(GateReason.TRANSPARENT, f"ciphertext {ciphertext} has no secret part")


def check_sum(plan: AggregatePlan, source: Source, count: int) -> None:
    """Returns only for a well-formed sum of `count` updates of this very plan.

    Participants can make a sum without a secret part, which gives away nothing: that is no error here.

    Raises: GateError; ParameterError on a count of no sum.
    """
    _check_count(count)
    view = _open(plan, source, AggregateMagic.SUM, count)
    for ciphertext in range(plan.ciphertexts):
        for component in range(2):
            for level in range(len(plan.primes)):
                _read_row(plan, view, ciphertext, component, level)


def _check_count(count: int) -> None:
    if not MIN_SUMMED <= count <= MAX_UPDATES:
        raise ParameterError(f"a sum has {MIN_SUMMED} to {MAX_UPDATES} updates, not {count}")


def _open(plan: AggregatePlan, source: Source, magic: AggregateMagic, count: int) -> memoryview:
    view = open_source(source)
    check_length(view, plan.update_bytes)
    check_header(view, plan.build_header(magic, count))
    return view


def _read_row(plan: AggregatePlan, view: memoryview, ciphertext: int, component: int, level: int) -> Residues:
    """(N,) residues of one prime.

    Raises: GateError if one is not below it.
    """
    ring, widths = plan.params.ring, plan.widths
    before = (2 * ciphertext + component) * sum(widths) + sum(widths[:level])
    start = HEADER_BYTES + ring * before // 8
    row = unpack(view[start : start + compute_packed_bytes(ring, widths[level])], widths[level])
    if int(row.max()) >= plan.primes[level]:
        raise GateError(GateReason.RESIDUE, f"a residue of ciphertext {ciphertext} is not below its prime")
    return row


# --- adding and opening -----------------------------------------------------------------------


def add_updates(plan: AggregatePlan, sources: Sequence[Source], output: Path) -> None:
    """Writes the sum of 2 to 64 updates to `output`, whole or not at all; needs no key and no library.

    The same bytes in any order of `sources` and on any machine. Reads and holds one prime's residues of one
    polynomial at a time.

    Raises: GateError on a malformed update; ParameterError on another number of them.
    """
    _check_count(len(sources))
    views = [_open(plan, source, AggregateMagic.UPDATE, 1) for source in sources]
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(plan.build_header(AggregateMagic.SUM, len(views)))
            for ciphertext in range(plan.ciphertexts):
                for component in range(2):
                    for level, prime in enumerate(plan.primes):
                        # 64 residues of at most 50 bits add up to 56.
                        total = np.zeros(plan.params.ring, dtype=np.uint64)
                        for view in views:
                            total += _read_row(plan, view, ciphertext, component, level)
                        total %= np.uint64(prime)
                        file.write(pack(total, plan.widths[level]))
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def decrypt_sum(private: "PrivateContext", plan: AggregatePlan, source: Source, count: int) -> Integers:
    """(P,): exactly the sum of the integers of the `count` updates that were added up.

    If an update held values out of its range, some numbers are wrong, but within the plan's capacity.

    Raises: GateError on anything but the well-formed sum of `count` updates, so on a single update too;
    ParameterError on keys of other parameters, or a count of no sum.
    """
    if private.params != plan.params:
        raise ParameterError(f"{private!r} does not belong to {plan.params.name}")
    check_sum(plan, source, count)
    view = open_source(source)
    ring, levels = plan.params.ring, len(plan.primes)
    values = np.empty((plan.ciphertexts, plan.digits, ring), dtype=np.int64)
    for ciphertext in range(plan.ciphertexts):
        body = np.stack(
            [
                np.stack([_read_row(plan, view, ciphertext, component, level) for level in range(levels)])
                for component in range(2)
            ]
        )
        values[ciphertext] = _decode(plan, private.decrypt_residues(body))
    return values.reshape(-1)[: plan.parameters].copy()


def _decode(plan: AggregatePlan, residues: Residues) -> Integers:
    """(digits, N) of a decrypted polynomial (levels, N), whatever it is."""
    modulus, delta, capacity = plan.modulus, plan.delta, plan.capacity
    # Python's integers: moduli have hundreds of bits.
    total = np.zeros(plan.params.ring, dtype=object)
    for row, prime in zip(residues, plan.primes, strict=True):
        others = modulus // prime
        coefficients = invert(row.view(np.int64), prime).astype(object)
        total += coefficients * (others * pow(others, -1, prime))
    total %= modulus
    # Centred by an offset that is a multiple of D: rounds to the nearest m + offset, which is not negative.
    offset = (plan.radix**plan.digits - 1) // 2
    message = (total + offset * delta + delta // 2) % modulus // delta
    digits = np.empty((plan.digits, plan.params.ring), dtype=np.int64)
    for index in range(plan.digits):
        digits[index] = (message % plan.radix).astype(np.int64) - capacity
        message //= plan.radix
    return digits
