"""Medical image files made of phantoms, for tests of what reads them. Names and dates in them are made up."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RLELossless

from fusion_model.gradients import Array
from fusion_model.phantom import build_phantoms

NAME, NUMBER, BIRTH = "Doe^Jane", "MRN-0815", "19700101"
"""What must be found nowhere in a data set."""

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
UID = "1.2.826.0.1.3680043.8.498."


def build_slices(patient: int = 0, slices: int = 4, size: int = 64) -> tuple[list[Array], list[Array]]:
    """CT-like and MR-like slices of one synthetic head, in [0, 1]."""
    pairs = build_phantoms(5, 1, slices, size, patient)
    return [pair.first for pair in pairs], [pair.second for pair in pairs]


def build_dicom(
    image: npt.NDArray[np.generic],
    modality: str = "MR",
    *,
    patient: str = NUMBER,
    series: int = 1,
    study: int = 1,
    frame_of_reference: int = 1,
    instance: int = 1,
    place: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
    directions: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (1.0, 1.0),
    bits: int = 12,
) -> FileDataset:
    """A data set of one frame; `image` is integers as they are stored, or floats in [0, 1] to be stored."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{UID}{series}.{instance}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = NAME, patient
    dataset.PatientBirthDate, dataset.PatientSex = BIRTH, "F"
    dataset.InstitutionName = "St Nowhere"
    dataset.StudyDate, dataset.StudyInstanceUID = "20200229", f"{UID}{study}.7"
    dataset.SeriesInstanceUID = f"{UID}{study}.{series}.8"
    dataset.FrameOfReferenceUID = f"{UID}{frame_of_reference}.9"
    dataset.Modality, dataset.InstanceNumber = modality, instance
    dataset.PixelSpacing = list(spacing)
    if place is not None:
        dataset.ImagePositionPatient = list(place)
        dataset.ImageOrientationPatient = list(directions)
    store(dataset, image, bits)
    return dataset


def store(dataset: Dataset, image: npt.NDArray[np.generic], bits: int = 12) -> None:
    """Puts pixels into a data set: grey (H, W), frames (n, H, W) or RGB (H, W, 3)."""
    if image.dtype.kind == "f":
        image = np.rint(image.astype(np.float64) * (2**bits - 1)).astype(np.uint16)
    colour = image.ndim == 3 and image.shape[2] == 3
    depth = 8 * image.dtype.itemsize
    if image.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(image)
    dataset.Rows, dataset.Columns = image.shape[:2] if colour else image.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored = depth, min(bits, depth)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(image.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(image).tobytes()
    dataset["PixelData"].VR = "OB" if depth == 8 else "OW"


def compress(dataset: FileDataset) -> FileDataset:
    """The same, run-length coded."""
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


def save_dicom(path: Path, dataset: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_series(
    folder: Path, images: Sequence[Array], modality: str, gap_mm: float = 3.0, **facts: object
) -> list[Path]:
    """One file for each slice, named so that order by name is not order by place."""
    paths = []
    for number, image in enumerate(images):
        dataset = build_dicom(
            image,
            modality,
            instance=number + 1,
            place=(0.0, 0.0, gap_mm * number),
            **facts,  # type: ignore[arg-type]
        )
        paths.append(save_dicom(folder / f"IM{(7 * number) % 100:04d}.dcm", dataset))
    return paths


def build_enhanced(images: Sequence[Array], modality: str = "MR", gap_mm: float = 3.0) -> FileDataset:
    """A multi-frame data set whose places and rescale are in functional groups."""
    stored = np.stack([np.rint(image * 4095).astype(np.uint16) for image in images])
    dataset = build_dicom(stored, modality, place=None)
    del dataset.PixelSpacing
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing = [1.0, 1.0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in range(len(images)):
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, gap_mm * number]
        values.RescaleSlope, values.RescaleIntercept = 2.0, -100.0
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def save_nifti(path: Path, images: Sequence[Array], gap_mm: float = 3.0, codes: str = "RAS") -> Path:
    """A volume whose axial slices are those images, as a DICOM series at the same places would show them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Slices (H, W) have rows to the back and columns to the left; the array's axes go left, back and up.
    volume = np.stack([image.T for image in images], axis=2).astype(np.float32)
    image = nib.Nifti1Image(volume, np.diag([-1.0, -1.0, gap_mm, 1.0]))
    wanted = nib.orientations.axcodes2ornt(tuple(codes))
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), wanted)
    nib.save(image.as_reoriented(turn), path)
    return path
