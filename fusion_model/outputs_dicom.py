"""Fused images as DICOM secondary captures: new objects, without the patient's identity unless asked for.

Source: DICOM PS3.3, A.8 (secondary capture image objects) and C.12.1 (SOP common: contributing equipment).
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fusion_model.outputs import FusedPlane, Provenance

_SINGLE = "1.2.840.10008.5.1.4.1.1.7"
_MULTI_GREY = "1.2.840.10008.5.1.4.1.1.7.2"
_MULTI_COLOUR = "1.2.840.10008.5.1.4.1.1.7.4"

IDENTITY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)
"""What `keep_identity` takes over, so that an archive files the image with its sources."""

_TEXT = 1024
"""Characters of an ST value."""


def save_dicom(
    path: Path,
    planes: Sequence[FusedPlane],
    provenance: Provenance,
    *,
    identity: Path | None = None,
    burned_in: bool = False,
    now: datetime.datetime | None = None,
) -> None:
    """One file: an image, or a multi-frame one with every plane's place; overwrites.

    UIDs are new. Without `identity` nothing of the sources' tags is taken over and the object says that
    identity was removed; with it, a source file, patient and study are those of that file. `burned_in`: the
    sources may hold text in their pixels. Raises ValueError for planes of different sizes, OSError and
    pydicom's InvalidDicomError for an unreadable `identity`.
    """
    sizes = {plane.image.shape for plane in planes}
    if len(sizes) != 1:
        raise ValueError(f"{path}: planes of different sizes {sorted(sizes)}; write PNG files")
    coloured = planes[0].image.ndim == 3
    many = len(planes) > 1
    moment = datetime.datetime.now() if now is None else now
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.UID(
        (_MULTI_COLOUR if coloured else _MULTI_GREY) if many else _SINGLE
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = generate_uid()
    data.SeriesInstanceUID = generate_uid()
    for name in ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(data, name, "")
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(data, name, "")
    _add_identity(data, identity)
    data.Modality = "OT"
    data.ConversionType = "WSD"
    data.Manufacturer = "BMIF"
    data.SeriesNumber, data.InstanceNumber = 1, 1
    data.SeriesDescription = "Fused images"
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.ContentDate = data.InstanceCreationDate = moment.strftime("%Y%m%d")
    data.ContentTime = data.InstanceCreationTime = moment.strftime("%H%M%S")
    data.BurnedInAnnotation = "YES" if burned_in else "NO"
    data.LossyImageCompression = "00"
    data.DerivationDescription = provenance.describe()[:_TEXT]
    data.ContributingEquipmentSequence = [_build_equipment(provenance)]
    _add_pixels(data, planes, coloured)
    _add_places(data, planes)
    data.save_as(path, enforce_file_format=True)


def _add_identity(data: FileDataset, source: Path | None) -> None:
    if source is None:
        data.PatientIdentityRemoved = "YES"
        data.DeidentificationMethod = "New object; no tag of the sources is taken over"
        return
    found = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=list(IDENTITY))
    for name in IDENTITY:
        if name in found:
            setattr(data, name, found[name].value)
    data.PatientIdentityRemoved = "NO"


def _build_equipment(provenance: Provenance) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue = "109102"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = "BMIF"
    equipment.ManufacturerModelName = "bmif fuse"
    equipment.SoftwareVersions = provenance.software
    equipment.ContributionDescription = provenance.describe()[:_TEXT]
    return equipment


def _add_pixels(data: FileDataset, planes: Sequence[FusedPlane], coloured: bool) -> None:
    pixels = np.stack([plane.image for plane in planes])
    data.SamplesPerPixel = 3 if coloured else 1
    data.PhotometricInterpretation = "RGB" if coloured else "MONOCHROME2"
    if coloured:
        data.PlanarConfiguration = 0
    data.Rows, data.Columns = pixels.shape[1:3]
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelRepresentation = 0
    if len(planes) > 1:
        data.NumberOfFrames = len(planes)
        if not coloured:
            data.PresentationLUTShape = "IDENTITY"
            data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    raw = pixels.tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)


def _add_places(data: FileDataset, planes: Sequence[FusedPlane]) -> None:
    """Spacing, orientation and every plane's position, where the first source says them."""
    known = [plane.geometry for plane in planes if plane.geometry is not None]
    many = len(planes) > 1
    if len(known) != len(planes):
        if many:
            data.FrameIncrementPointer = Tag("FrameLabelVector")
            data.FrameLabelVector = [f"{number}" for number in range(1, len(planes) + 1)]
        return
    if "FrameOfReferenceUID" not in data:
        data.FrameOfReferenceUID = generate_uid()
        data.PositionReferenceIndicator = ""
    geometry = known[0]
    spacing = [_format(value) for value in geometry.spacing]
    directions = [_format(value) for value in (*geometry.across, *geometry.down)]
    if not many:
        data.PixelSpacing = spacing
        data.ImageOrientationPatient = directions
        if geometry.origin is not None:
            data.ImagePositionPatient = [_format(value) for value in geometry.origin]
        return
    data.FrameIncrementPointer = Tag("SliceLocationVector")
    data.SliceLocationVector = [_format(place.depth or 0.0) for place in known]
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = spacing
    orientation.ImageOrientationPatient = directions
    depths = [place.depth for place in known if place.depth is not None]
    if len(depths) > 1:
        measures.SliceThickness = _format(abs(depths[1] - depths[0]))
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    frames: list[Dataset] = []
    for place in known:
        position, frame = Dataset(), Dataset()
        if place.origin is not None:
            position.ImagePositionPatient = [_format(value) for value in place.origin]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames


def _format(value: float) -> str:
    """A DS of at most 16 characters."""
    return f"{value + 0.0:.10g}"[:16]
