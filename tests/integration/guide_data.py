"""What docs/FUSION.md works on: a synthetic hospital's DICOM, NIfTI and PNG files; names are made up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fusion_model.gradients import Array
from tests.medical import NUMBER, build_dicom, build_slices, save_dicom, save_nifti

PATIENTS, SLICES, SIDE = 8, 3, 96
BRAIN_HU = 80.0
"""The brain window shows 0 to 80 Hounsfield units."""


def build_guide_data(folder: Path) -> None:
    """Writes mri/ and ct/ (DICOM), t1.nii.gz and ct.nii.gz, pictures/mri/ and pictures/ct/ (PNG).

    One MRI file is cut short, as a copy that was broken off is.
    """
    for number in range(PATIENTS):
        ct, mri = build_slices(number, SLICES, SIDE)
        _save_series(folder / "mri" / f"{number}", mri, number, "MR")
        _save_series(folder / "ct" / f"{number}", ct, number, "CT")
    cut = folder / "mri" / "5" / "2.dcm"
    cut.write_bytes(cut.read_bytes()[:-1000])
    ct, mri = build_slices(PATIENTS, 4, SIDE)
    save_nifti(folder / "t1.nii.gz", [1000 * image for image in mri])
    save_nifti(folder / "ct.nii.gz", [BRAIN_HU * image for image in ct])
    for number in range(4):
        ct, mri = build_slices(PATIENTS + 1 + number, 1, SIDE)
        for name, image in (("mri", mri[0]), ("ct", ct[0])):
            path = folder / "pictures" / name / f"p{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(path)


def _save_series(folder: Path, images: Sequence[Array], patient: int, modality: str) -> None:
    for number, image in enumerate(images):
        dataset = build_dicom(
            image,
            modality,
            patient=f"{NUMBER}-{patient}",
            series=1 + (modality == "CT"),
            study=patient,
            frame_of_reference=patient,
            instance=number + 1,
            place=(0.0, 0.0, 3.0 * number),
        )
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = BRAIN_HU / 4095, 0.0
        save_dicom(folder / f"{number}.dcm", dataset)
