"""The folder that an import leaves: PNG images, manifests and preview sheets, none of which names a patient.

    OUT/first/0003_012.png     second/0003_012.png     grey of 8 or 16 bits, or 8-bit RGB
    OUT/manifest.csv           every pair; train.csv, validation.csv, test.csv: the pairs of one split
    OUT/preview.png            both images of every pair, side by side

Of the files' tags the manifest has what fusion needs: modality, bits, anatomical plane and spacing.
"""

import csv
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_model.importers.colour import Bytes, Grey
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.patients import SPLITS
from fusion_model.importers.preview import PreviewSheets, convert_to_thumb

MANIFEST = "manifest.csv"
COLUMNS = (
    *("id", "modality", "file_a", "file_b", "patient", "split", "width", "height"),
    *("modality_a", "modality_b", "bits_a", "bits_b", "plane", "row_mm", "column_mm", "information"),
)
_SIDES = ("first", "second")


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What the manifest says of a pair besides its name, files, patient and split."""

    modality: str
    modalities: tuple[str, str]
    bits: tuple[int, int]
    plane: str = ""
    spacing: tuple[float, float] | None = None
    """Between rows, between columns; mm."""
    information: float = 1.0
    """Normalised mutual information."""


@dataclass(frozen=True, slots=True)
class ImportedPair:
    """A pair in the data set."""

    name: str
    patient: int
    size: tuple[int, int]
    facts: PairFacts


class DatasetWriter:
    """Fills a hidden folder beside OUT that takes OUT's name at the end: nobody sees half a data set."""

    def __init__(self, output: Path, preview: bool = True) -> None:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ImportRefusedError(output, "is not an empty folder", "name a new one")
        if not output.parent.is_dir():
            raise ImportRefusedError(output.parent, "is not a folder", "make it first")
        self._output = output
        self._folder = Path(tempfile.mkdtemp(prefix=".bmif-import-", dir=output.parent))
        for side in _SIDES:
            (self._folder / side).mkdir()
        self._sheets = PreviewSheets(self._folder) if preview else None
        self._counts: dict[int, int] = {}
        self.pairs: list[ImportedPair] = []

    def add(
        self,
        patient: int,
        images: tuple[Grey, Grey],
        colours: tuple[Bytes | None, Bytes | None],
        facts: PairFacts,
    ) -> ImportedPair:
        """Writes the pair's images; where `colours` are given, they instead of their luminance."""
        number = self._counts.get(patient, 0)
        self._counts[patient] = number + 1
        name = f"{patient:04d}_{number:03d}"
        shown = []
        for side, image, colour in zip(_SIDES, images, colours, strict=True):
            pixels = colour if image.chroma is not None and colour is not None else None
            _save(self._folder / side / f"{name}.png", image, pixels)
            shown.append(convert_to_thumb(image.luminance) if pixels is None else pixels)
        height, width = images[0].luminance.shape
        pair = ImportedPair(name, patient, (height, width), facts)
        self.pairs.append(pair)
        if self._sheets is not None:
            label = f"{name}  {facts.modality}  {facts.plane}  NMI {facts.information:.2f}"
            self._sheets.add(label, shown[0], shown[1])
        return pair

    def finish(self, splits: dict[int, str]) -> None:
        """Writes manifests and the last preview sheet, and gives the folder its name."""
        rows = [_describe(pair, splits[pair.patient]) for pair in self.pairs]
        _write_rows(self._folder / MANIFEST, rows)
        for split in SPLITS:
            some = [row for row in rows if row["split"] == split]
            if some:
                _write_rows(self._folder / f"{split}.csv", some)
        if self._sheets is not None:
            self._sheets.flush()
        self._folder.replace(self._output)

    def abandon(self) -> None:
        """Removes what was written, if it has not got its name."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _save(path: Path, image: Grey, colour: Bytes | None) -> None:
    if colour is not None:
        pixels = Image.fromarray(np.ascontiguousarray(colour))
    else:
        eighth = image.luminance * 255
        # Eight bits hold it exactly if they held it in the source.
        exact = np.abs(eighth - np.rint(eighth)).max(initial=0) < 1e-9
        grey = (
            np.rint(eighth).astype(np.uint8) if exact else np.rint(image.luminance * 65535).astype(np.uint16)
        )
        pixels = Image.fromarray(np.ascontiguousarray(grey))
    pixels.save(path, format="PNG")


def _describe(pair: ImportedPair, split: str) -> dict[str, str]:
    facts = pair.facts
    spacing = ("", "") if facts.spacing is None else tuple(f"{mm:.6g}" for mm in facts.spacing)
    values = (
        *(pair.name, facts.modality, f"first/{pair.name}.png", f"second/{pair.name}.png"),
        *(str(pair.patient), split, str(pair.size[1]), str(pair.size[0]), *facts.modalities),
        *(str(facts.bits[0]), str(facts.bits[1]), facts.plane, *spacing, f"{facts.information:.4f}"),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
