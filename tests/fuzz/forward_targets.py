"""Targets: the byte gate of encrypted fusion, on the peer's side and on the requester's."""

from collections.abc import Callable, Iterable

from he.errors import GateError
from he.formats import HEADER_BYTES, WORD_BYTES, Body
from he.forward import FUSED_MAGIC, TILES_MAGIC, build_forward_plan
from he.inference import check_fused, check_tiles
from he.params import PRESETS, CkksParams
from he.spec import PolynomialSpec
from tests.fuzz.target import Target, require

PARAMS = CkksParams(
    name="fuzz-4-60x3",
    ring=4,
    primes=PRESETS["ckks-8192-60x3"].primes,
    data_scale_bits=30,
    weight_scale_bits=20,
    insecure=True,
)
"""The gate reads sizes from the preset, so a tiny ring leaves no line of it out."""
PLAN = build_forward_plan(PARAMS, PolynomialSpec(patch=1, kernels=(1,), second=1), (1,) * 4)


def read_parts(data: bytes, body: Body) -> list[list[int]]:
    """The words of each component."""
    at, length = body.offset, 2 * body.form.level * PARAMS.ring * WORD_BYTES
    words = [int.from_bytes(data[i : i + WORD_BYTES], "little") for i in range(at, at + length, WORD_BYTES)]
    return [words[: len(words) // 2], words[len(words) // 2 :]]


def build_run(
    check: Callable[[bytes], None], magic: bytes, bodies: tuple[Body, ...], length: int
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        """GateError alone leaves it; what passes has the exact length, the one header, residues below their
        primes and secret parts, so that the encryption library sees nothing else."""
        check(data)
        require(len(data) == length, "another length than the plan's")
        require(data[:HEADER_BYTES] == PLAN.build_header(magic), "another header")
        for body in bodies:
            for part in read_parts(data, body):
                for index, word in enumerate(part):
                    require(
                        word < PARAMS.primes[index // PARAMS.ring], f"word {index} is not below its prime"
                    )
            require(any(read_parts(data, body)[1]), "no secret part")

    return run


def build_seeds(magic: bytes, bodies: tuple[Body, ...]) -> Callable[[], Iterable[bytes]]:
    def build() -> Iterable[bytes]:
        for fill in (0, 1, 2):
            words = [
                (0, 1, prime - 1)[fill]
                for body in bodies
                for _ in range(2)
                for prime in PARAMS.primes[: body.form.level]
                for _ in range(PARAMS.ring)
            ]
            residues = b"".join(word.to_bytes(WORD_BYTES, "little") for word in words)
            yield PLAN.build_header(magic) + residues

    return build


def build_targets() -> list[Target]:
    tiles, fused = PLAN.get_tile_bodies(), PLAN.get_fused_bodies()
    run_tiles = build_run(lambda data: check_tiles(PLAN, data), TILES_MAGIC, tiles, PLAN.tiles_bytes)
    run_fused = build_run(lambda data: check_fused(PLAN, data), FUSED_MAGIC, fused, PLAN.fused_bytes)
    return [
        Target("gate.fused", run_fused, (GateError,), build_seeds(FUSED_MAGIC, fused)),
        Target("gate.tiles", run_tiles, (GateError,), build_seeds(TILES_MAGIC, tiles)),
    ]
