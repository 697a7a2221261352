"""Sheets of all imported pairs, both modalities side by side, to look over before anything is encrypted."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusion_model.importers.colour import Bytes

THUMB_PX = 128
_LABEL_PX = 16
_GAP_PX = 6
_PAIRS_A_ROW = 5
PAIRS_A_SHEET = 100


class PreviewSheets:
    """Collects thumbnails and writes `preview.png`, then `preview-2.png` and so on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cells: list[Image.Image] = []
        self.paths: list[Path] = []

    def add(self, label: str, first: Bytes, second: Bytes) -> None:
        """A pair of images (H, W) or (H, W, 3). The label must not name anybody."""
        cell = Image.new("RGB", (2 * THUMB_PX + 1, THUMB_PX + _LABEL_PX), "white")
        ImageDraw.Draw(cell).text((1, 2), label, fill="black", font=ImageFont.load_default())
        for number, image in enumerate((first, second)):
            picture = Image.fromarray(image).convert("RGB")
            picture.thumbnail((THUMB_PX, THUMB_PX))
            left = number * (THUMB_PX + 1)
            cell.paste("black", (left, _LABEL_PX, left + THUMB_PX, _LABEL_PX + THUMB_PX))
            cell.paste(
                picture,
                (left + (THUMB_PX - picture.width) // 2, _LABEL_PX + (THUMB_PX - picture.height) // 2),
            )
        self._cells.append(cell)
        if len(self._cells) == PAIRS_A_SHEET:
            self.flush()

    def flush(self) -> None:
        """Writes what has been collected since the last sheet."""
        if not self._cells:
            return
        columns = min(_PAIRS_A_ROW, len(self._cells))
        rows = -(-len(self._cells) // columns)
        width, height = self._cells[0].size
        sheet = Image.new("RGB", (columns * (width + _GAP_PX), rows * (height + _GAP_PX)), "white")
        for number, cell in enumerate(self._cells):
            row, column = divmod(number, columns)
            sheet.paste(cell, (column * (width + _GAP_PX), row * (height + _GAP_PX)))
        name = "preview.png" if not self.paths else f"preview-{len(self.paths) + 1}.png"
        sheet.save(self._folder / name, format="PNG")
        self.paths.append(self._folder / name)
        self._cells.clear()


def convert_to_thumb(luminance: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Bytes:
    """0..255 of a luminance in [0, 1]."""
    return np.clip(np.rint(luminance * 255), 0, 255).astype(np.uint8)
