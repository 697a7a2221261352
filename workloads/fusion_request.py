"""The requester's side of encrypted fusion: planes, tiles, keys of its own, and the image that comes back.

A pair is cut into tiles whose results are O x O pixels and do not overlap; each tile holds the margin that
the network looks at. One ciphertext holds one plane's pixel of every tile, so nothing has to be shifted and
no rotation keys exist. The skip S is not sent: the result is F = S + F', and whoever asks knows S.

Keys are made for one pair, live in this process' memory alone and are never a task's. No training library
is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusion_model.importers.png import ImportRefusedError, import_pair
from fusion_model.inference import compute_fade
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, convert_to_bytes, encode_png, recolour
from fusion_model.prepared import prepare_inputs
from he.errors import HeError
from he.forward import MAX_TILE
from workloads.base import WorkloadError
from workloads.encrypted_fusion import ENCRYPTED_FUSION, EncryptedFusion
from workloads.fusion import FusionSpec

Floats = npt.NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told (done, total) ciphertexts."""


def build_planes(spec: FusionSpec, pair: ImagePair) -> tuple[Floats, Floats]:
    """The network's planes (A, H, W) and the skip S (H, W) of a whole pair, on the model's grid.

    Raises WorkloadError for a pair that the model's planes can't be computed from.
    """
    try:
        return prepare_inputs(spec.settings, pair)
    except ValueError as error:
        raise WorkloadError(str(error)) from error


def choose_tile(height: int, width: int, overlap: int, slots: int) -> int:
    """The side of tiles that sends the fewest bytes; `overlap` is twice the margin.

    A request costs a ciphertext for every pixel of a tile with its margin, whether or not all of the slots
    are used: 4 for a 256x256 image and 4096 slots.
    """

    def count(tile: int) -> int:
        requests = -(-_count_tiles(height, width, tile) // slots)
        return requests * (tile + overlap) ** 2

    return min(range(1, MAX_TILE + 1), key=count)


def _count_tiles(height: int, width: int, tile: int) -> int:
    return -(-height // tile) * -(-width // tile)


def cut_tiles(planes: Floats, tile: int, margin: int) -> Floats:
    """Tiles (n, A, P, P) of planes (A, H, W), row by row, continued by reflection at the image's border.

    Raises WorkloadError for an image too small to reflect.
    """
    height, width = planes.shape[1:]
    if min(height, width) <= margin:
        raise WorkloadError(f"an image of {width}x{height} pixels is too small for a margin of {margin}")
    bordered = np.pad(planes, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    # What fills up the last row and column of tiles is cut off again.
    padded = np.pad(bordered, ((0, 0), (0, -height % tile), (0, -width % tile)))
    side = tile + 2 * margin
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::tile, ::tile]
    return np.ascontiguousarray(windows.transpose(1, 2, 0, 3, 4).reshape(-1, len(planes), side, side))


def join_tiles(results: Floats, height: int, width: int) -> Floats:
    """The image (H, W) of the results (n, O, O) of its tiles."""
    tile = results.shape[1]
    rows, columns = -(-height // tile), -(-width // tile)
    grid = results.reshape(rows, columns, tile, tile).transpose(0, 2, 1, 3)
    return grid.reshape(rows * tile, columns * tile)[:height, :width]


@dataclass(frozen=True, slots=True)
class FusedPair:
    """What came of a request, in clear."""

    image: ByteImage
    """(H, W), or (H, W, 3) in the colours of the pair's coloured image."""
    luminance: Floats
    """F (H, W) before clipping and rounding, nominally in [0, 1]."""


class FusionRequest:
    """One pair on its way through peers that see neither image: keys, encrypted requests, results.

    An image too large for one request's slots takes several, each of all planes of some of the tiles.
    """

    def __init__(
        self,
        model: bytes,
        weights: tuple[int, ...],
        pair: ImagePair,
        fusion: EncryptedFusion = ENCRYPTED_FUSION,
    ) -> None:
        """Makes the keys. Raises WorkloadError if pair and model do not fit."""
        from he.context import PrivateContext

        spec = FusionSpec.decode(model)
        planes, self._skip = build_planes(spec, pair)
        self._fade = compute_fade(spec.network, planes[0], planes[1])
        self._chroma = pair.chroma
        height, width = planes.shape[1:]
        slots = fusion.params.slots
        self.tile = choose_tile(height, width, 2 * spec.circuit.margin, slots)
        """O: side of a tile's result."""
        self._plan = fusion.build_plan(model, weights, self.tile)
        tiles = cut_tiles(planes, self.tile, self._plan.spec.margin)
        self._tiles = [tiles[start : start + slots] for start in range(0, len(tiles), slots)]
        self._results: list[Floats | None] = [None] * len(self._tiles)
        try:
            self._context = PrivateContext.generate(fusion.params)
        except HeError as error:
            raise WorkloadError(f"keys: {error}") from error

    def __repr__(self) -> str:
        return f"FusionRequest({len(self._tiles)} of tiles of {self.tile})"

    @property
    def parts(self) -> int:
        """How many requests the pair takes."""
        return len(self._tiles)

    @property
    def request_bytes(self) -> int:
        """Of each request."""
        return self._plan.request_bytes

    @property
    def result_bytes(self) -> int:
        """Of each result."""
        return self._plan.fused_bytes

    @property
    def key_bytes(self) -> int:
        """Relinearisation keys, at the head of each request."""
        return self._plan.relin_bytes

    def encrypt(self, part: int, report: Report = lambda done, total: None) -> bytes:
        """Request number `part`: relinearisation keys, then encrypted tiles."""
        from he.inference import encrypt_tiles

        keys = self._context.public.relin_keys
        if keys is None:
            raise WorkloadError("keys: no relinearisation keys were made")
        try:
            return keys.encode() + encrypt_tiles(self._context, self._plan, self._tiles[part], report)
        except HeError as error:
            raise WorkloadError(f"tiles: {error}") from error

    def decrypt(self, part: int, result: bytes) -> None:
        """Takes the peer's result of request number `part`.

        Raises WorkloadError if it is not well formed.
        """
        from he.inference import decrypt_fused

        try:
            values = decrypt_fused(self._context, self._plan, result)
        except HeError as error:
            raise WorkloadError(f"the peer's result: {error}") from error
        self._results[part] = values[: len(self._tiles[part])]

    def finish(self) -> FusedPair:
        """The fused pair, once every result is there. Raises WorkloadError if one is missing."""
        found = [result for result in self._results if result is not None]
        if len(found) != self.parts:
            raise WorkloadError(f"{self.parts - len(found)} of {self.parts} results are missing")
        luminance = self._skip + self._fade * join_tiles(np.concatenate(found), *self._skip.shape)
        grey = convert_to_bytes(luminance)
        return FusedPair(grey if self._chroma is None else recolour(grey, self._chroma), luminance)


def load_pair(first: Path, second: Path) -> ImagePair:
    """A registered pair of PNG files. Raises WorkloadError naming the file at fault."""
    try:
        return import_pair(first, second, first.stem, 0)
    except ImportRefusedError as error:
        raise WorkloadError(str(error)) from error


def save_image(fused: FusedPair, output: Path, provenance: Mapping[str, str]) -> None:
    """Writes the PNG, with where its model comes from as text chunks."""
    output.write_bytes(encode_png(Image.fromarray(fused.image), provenance))
