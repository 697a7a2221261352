"""Targets: the byte gate for ciphertexts and keys, and the models that tasks name."""

import struct
from collections.abc import Callable, Iterable

from he.errors import GateError, HeError
from he.formats import (
    HEADER_BYTES,
    VALIDATION_FLAG,
    Body,
    Magic,
    build_batch_layout,
    build_bundle_layout,
    build_header,
    build_loss_layout,
)
from he.gate import (
    check_batch,
    check_bundle,
    check_loss,
    check_public_key,
    check_relin_keys,
    check_secret_key,
)
from he.params import PRESETS, CkksParams
from he.plan import build_plan
from he.spec import PolynomialSpec
from tests.fuzz.target import Form, Target, require
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec, FusionTraining

PARAMS = CkksParams(
    name="fuzz-4-60x5",
    ring=4,
    primes=PRESETS["ckks-16384-60x5"].primes,
    data_scale_bits=30,
    weight_scale_bits=20,
    insecure=True,
)
"""The gate reads sizes from the preset, so a tiny ring leaves no line of it out."""
SPEC = PolynomialSpec(patch=1, kernels=(1,), second=1)
PLAN = build_plan(PARAMS, SPEC)


def check_residues(data: bytes, at: int, components: int, levels: int, *, may_be_zero: bool = False) -> None:
    """The gate's promise, word by word: below its prime, and a secret part unless all is zero."""
    words = struct.unpack_from(f"<{components * levels * PARAMS.ring}Q", data, at)
    half = len(words) // components
    for index, word in enumerate(words):
        prime = PARAMS.primes[index % half // PARAMS.ring]
        require(word < prime, f"word {index} at {at} is not below its prime")
    require(any(words[-half:]) or (may_be_zero and not any(words)), f"no secret part at {at}")


def check_bodies(data: bytes, bodies: tuple[Body, ...], length: int, *, may_be_zero: bool = False) -> None:
    require(len(data) == length, "another length than the layout's")
    for body in bodies:
        check_residues(data, body.offset, 2, body.form.level, may_be_zero=may_be_zero)


def run_batch(data: bytes) -> None:
    """`check_batch`: GateError alone leaves it; what passes has the exact length, the one header and
    residues below their primes, so that the encryption library sees nothing else."""
    validation = check_batch(PARAMS, SPEC, data)
    layout = build_batch_layout(PLAN, validation=validation)
    flags = VALIDATION_FLAG if validation else 0
    require(data[:HEADER_BYTES] == build_header(Magic.BATCH, PARAMS, SPEC, flags), "another header")
    check_bodies(data, layout.bodies, layout.length)


def run_bundle(data: bytes) -> None:
    """`check_bundle`: as `check_batch`; an all-zero ciphertext may pass."""
    check_bundle(PARAMS, SPEC, data)
    layout = build_bundle_layout(PLAN)
    require(data[:HEADER_BYTES] == build_header(Magic.BUNDLE, PARAMS, SPEC), "another header")
    check_bodies(data, layout.bodies, layout.length, may_be_zero=True)


def run_loss(data: bytes) -> None:
    """`check_loss`: as `check_batch`."""
    check_loss(PARAMS, SPEC, data)
    layout = build_loss_layout(PLAN)
    require(data[:HEADER_BYTES] == build_header(Magic.LOSS, PARAMS, SPEC), "another header")
    check_bodies(data, layout.bodies, layout.length)


def build_key_run(
    check: Callable[[CkksParams, bytes], memoryview], magic: Magic, parts: int, components: int
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """`check_*_key`: as `check_batch`; what it returns is the body."""
        require(check(PARAMS, data) == data[HEADER_BYTES:], "another body")
        levels = len(PARAMS.primes)
        size = components * levels * PARAMS.ring * 8
        require(len(data) == HEADER_BYTES + parts * size, "another length")
        require(data[:HEADER_BYTES] == build_header(magic, PARAMS), "another header")
        for part in range(parts):
            check_residues(data, HEADER_BYTES + part * size, components, levels)

    return run


# --- seeds ------------------------------------------------------------------------------------


def build_residues(components: int, levels: int, fill: int) -> bytes:
    """Residues that are 1, largest or zero."""
    primes = [prime for prime in PARAMS.primes[:levels] for _ in range(PARAMS.ring)] * components
    return struct.pack(f"<{len(primes)}Q", *((0, 1, prime - 1)[fill] for prime in primes))


def build_blob(magic: Magic, bodies: tuple[Body, ...], flags: int = 0) -> Iterable[bytes]:
    header = build_header(magic, PARAMS, SPEC, flags)
    for fill in (0, 1, 2):
        yield header + b"".join(build_residues(2, body.form.level, fill) for body in bodies)


def build_batches() -> Iterable[bytes]:
    yield from build_blob(Magic.BATCH, build_batch_layout(PLAN, validation=False).bodies)
    yield from build_blob(Magic.BATCH, build_batch_layout(PLAN, validation=True).bodies, VALIDATION_FLAG)


def build_key_seeds(magic: Magic, parts: int, components: int) -> Callable[[], Iterable[bytes]]:
    def build() -> Iterable[bytes]:
        for fill in (0, 1, 2):
            body = build_residues(components, len(PARAMS.primes), fill)
            yield build_header(magic, PARAMS) + body * parts

    return build


# --- models -----------------------------------------------------------------------------------


def run_spec(data: bytes) -> None:
    """`PolynomialSpec.decode`: an HeError or a spec whose one encoding the bytes are."""
    require(PolynomialSpec.decode(data).encode() == data, "encodes to other bytes")


def run_model(data: bytes) -> None:
    """`FusionSpec.decode` and what a node asks of a draft's model: a WorkloadError or plain numbers."""
    spec = FusionSpec.decode(data)
    require(spec.encode() == data, "encodes to other bytes")
    workload, preset = FusionTraining(), "ckks-16384-60x5"
    workload.check_model(preset, data, spec.parameters, 2**30)
    workload.check_weights(preset, data, (0,) * spec.parameters)
    for weights in ((2**40,) * spec.parameters, (), (2**63,) * spec.parameters):
        try:
            workload.check_weights(preset, data, weights)
        except WorkloadError:
            continue
    require(min(vars_of(workload.get_sizes(preset, data))) > 0, "a blob of no bytes")


def vars_of(sizes: object) -> list[int]:
    return [getattr(sizes, name) for name in sizes.__slots__]  # type: ignore[attr-defined]


def build_models() -> Iterable[bytes]:
    for patch, kernels, second in ((6, (3, 3, 3, 3), 3), (1, (1,), 1), (8, (1, 3, 5), 3)):
        yield FusionSpec(patch, kernels, second).encode()
    yield FusionSpec(levels=4095, gradient_weight=0).encode()
    yield FusionSpec(planes=("saliency", "contrast"), skip="maximum", target="energy").encode()


def build_specs() -> Iterable[bytes]:
    yield PolynomialSpec().encode()
    yield PolynomialSpec(64, (15,) * 64, 15, 16, 1024).encode()
    yield PolynomialSpec(8, (1, 3, 5), 3, 3, 4).encode()


def build_targets() -> list[Target]:
    bundle, loss = build_bundle_layout(PLAN).bodies, build_loss_layout(PLAN).bodies
    keys = (
        ("public_key", check_public_key, Magic.PUBLIC_KEY, 1, 2),
        ("relin_keys", check_relin_keys, Magic.RELIN_KEYS, PARAMS.levels, 2),
        ("secret_key", check_secret_key, Magic.SECRET_KEY, 1, 1),
    )
    refused = (GateError,)
    return [
        Target("gate.batch", run_batch, refused, build_batches),
        Target("gate.bundle", run_bundle, refused, lambda: build_blob(Magic.BUNDLE, bundle)),
        Target("gate.loss", run_loss, refused, lambda: build_blob(Magic.LOSS, loss)),
        *(
            Target(
                f"gate.{name}",
                build_key_run(check, magic, parts, components),
                refused,
                build_key_seeds(magic, parts, components),
            )
            for name, check, magic, parts, components in keys
        ),
        Target("model.polynomial", run_spec, (HeError,), build_specs),
        Target("model.fusion", run_model, (WorkloadError,), build_models, Form.MSGPACK, 512, base=2**22),
    ]
