"""Whole images through a trained model, in clear, on one's own machine: pairs, folders, volumes.

Neither encryption nor a training library is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydicom.errors import InvalidDicomError

from fusion_model.fuse import fuse_luminance
from fusion_model.importers.batch import ImportJob, ImportOptions, ImportSummary
from fusion_model.importers.errors import ImportRefusedError
from fusion_model.importers.nifti import is_nifti
from fusion_model.importers.png import list_manifest
from fusion_model.importers.raster import is_raster
from fusion_model.importers.registered import RegisteredStacks, read_registered
from fusion_model.importers.stack import Omission
from fusion_model.outputs import FusedPlane, Provenance, save_nifti, save_png
from fusion_model.pairs import ImagePair
from fusion_model.pictures import ByteImage, build_figure, encode_png, recolour, show_sources
from workloads.base import WorkloadError
from workloads.fusion import FusionSpec

__all__ = ["FuseRequest", "FuseSummary", "Fuser", "Provenance", "fuse_files"]

Format = Literal["png", "nifti", "dicom"]
FORMATS: dict[str, Format] = {"png": "png", "nifti": "nifti", "dicom": "dicom"}
_SUFFIXES: dict[str, Format] = {".png": "png", ".nii": "nifti", ".nii.gz": "nifti", ".dcm": "dicom"}
_EXTENSIONS: dict[Format, str] = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}

ProgressHook = Callable[[int], None]
"""Called with 1 for every fused plane."""


@dataclass(frozen=True, slots=True)
class Fuser:
    """A model's specification with its integer weights."""

    spec: FusionSpec
    weights: tuple[int, ...]

    @classmethod
    def decode(cls, model: bytes, weights: Sequence[int]) -> Self:
        """Raises WorkloadError if the specification is not canonical or has another number of weights."""
        spec = FusionSpec.decode(model)
        if len(weights) != spec.parameters:
            raise WorkloadError(f"weights: the specification has {spec.parameters}, got {len(weights)}")
        return cls(spec, tuple(weights))

    def fuse_luminance(self, pair: ImagePair) -> ByteImage:
        """The fused grey image (H, W). Raises ValueError for a pair too small for the network."""
        return fuse_luminance(self.spec.network, self.weights, pair, self.spec.settings)

    def fuse(self, pair: ImagePair) -> ByteImage:
        """The fused pair: (H, W), or (H, W, 3) in the colours of the pair's coloured image."""
        luminance = self.fuse_luminance(pair)
        return luminance if pair.chroma is None else recolour(luminance, pair.chroma)


@dataclass(frozen=True, slots=True)
class FuseRequest:
    """What to fuse and where to: two files or folders, or a manifest's pairs."""

    output: Path
    """A file for one result, or a folder."""
    options: ImportOptions
    first: Path | None = None
    second: Path | None = None
    manifest: Path | None = None
    modality: str | None = None
    format: str | None = None
    """None: by the output's suffix, else as the first source is."""
    keep_identity: bool = False
    """DICOM results name the patient and the study of the first source."""
    figure: Path | None = None
    """A PNG of the sources beside the middle result."""


@dataclass(slots=True)
class FuseSummary:
    """What was written, and what was left out and why."""

    files: list[Path] = field(default_factory=list)
    planes: int = 0
    size: tuple[int, int] = (0, 0)
    """(H, W) of the last plane."""
    omissions: list[Omission] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fuse_files(
    fuser: Fuser, request: FuseRequest, provenance: Provenance, progress: ProgressHook | None = None
) -> FuseSummary:
    """Fuses what can be fused and writes it with its provenance; what can not is in the summary.

    Raises WorkloadError for options that do not fit, and OSError where nothing can be written.
    """
    jobs = _list_jobs(request)
    suffix = _get_suffix(request.output)
    if request.format is not None and request.format not in FORMATS:
        raise WorkloadError(f"format: {request.format!r} is none of {', '.join(FORMATS)}")
    if not suffix:
        request.output.mkdir(parents=True, exist_ok=True)
    found, summary = ImportSummary(), FuseSummary()
    taken: set[str] = set()
    for job in jobs:
        for stacks in read_registered(job, request.options, found):
            _fuse_stacks(fuser, request, provenance, stacks, found, summary, taken, progress)
    summary.omissions, summary.notes = found.omissions, found.notes
    return summary


def _fuse_stacks(
    fuser: Fuser,
    request: FuseRequest,
    provenance: Provenance,
    stacks: RegisteredStacks,
    found: ImportSummary,
    summary: FuseSummary,
    taken: set[str],
    progress: ProgressHook | None,
) -> None:
    """One volume or single image: fuse its planes, then write them."""
    source = stacks.stacks.first.planes[0].path
    kind = _choose_format(request, source)
    if request.keep_identity and (kind != "dicom" or _guess_format(source) != "dicom"):
        raise WorkloadError("keep-identity: only from DICOM sources to a DICOM result")
    planes: list[FusedPlane] = []
    for number, entry in enumerate(stacks.pairs):
        try:
            image = fuser.fuse(entry.pair)
        except ValueError as error:
            remedy = "give a larger image" if "small" in str(error) else "check the file"
            found.omissions.append(Omission(entry.plane.path, str(error), remedy))
            continue
        planes.append(FusedPlane(entry.plane.name, image, entry.plane.geometry))
        if request.figure is not None and number == stacks.count // 2:
            _save_figure(request.figure, entry.pair, image)
        if progress is not None:
            progress(1)
    if not planes:
        return
    try:
        files = _write(request, provenance, kind, planes, stacks, taken)
    except (ImportRefusedError, InvalidDicomError, ValueError) as error:
        found.omissions.append(
            Omission(stacks.stacks.first.path, str(error), "choose another --format", len(planes))
        )
        return
    summary.files += files
    summary.planes += len(planes)
    summary.size = planes[-1].image.shape[0], planes[-1].image.shape[1]


def _write(
    request: FuseRequest,
    provenance: Provenance,
    kind: Format,
    planes: Sequence[FusedPlane],
    stacks: RegisteredStacks,
    taken: set[str],
) -> list[Path]:
    source = stacks.stacks.first.planes[0].path
    output = request.output
    alone = bool(_get_suffix(output))
    if alone and (taken or (kind == "png" and len(planes) > 1)):
        raise WorkloadError(f"output: {output} is one file for several results; name a folder")
    name = "" if alone else _choose_name(stacks, taken)
    taken.add(name)
    target = output if alone else output / f"{name}{_EXTENSIONS[kind]}"
    if not alone:
        target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        save_nifti(target, planes, provenance, source if is_nifti(source) else None)
    elif kind == "dicom":
        from fusion_model.outputs_dicom import save_dicom

        save_dicom(
            target,
            planes,
            provenance,
            identity=source if request.keep_identity else None,
            burned_in=is_raster(source),
        )
    elif len(planes) == 1:
        save_png(target, planes[0].image, provenance)
    else:
        files = [output / f"{name}-{number:04d}.png" for number in range(1, len(planes) + 1)]
        for path, plane in zip(files, planes, strict=True):
            save_png(path, plane.image, provenance)
        return files
    return [target]


def _list_jobs(request: FuseRequest) -> list[ImportJob]:
    if (request.first is None) != (request.second is None):
        raise WorkloadError("give both images, one of each modality")
    if (request.first is None) == (request.manifest is None):
        raise WorkloadError("give two files or folders, or --manifest")
    if request.manifest is None:
        if request.first is None or request.second is None:
            raise WorkloadError("give two files or folders, or --manifest")
        for path in (request.first, request.second):
            if not path.exists():
                raise WorkloadError(f"{path} does not exist")
        return [ImportJob(request.first, request.second)]
    try:
        return [ImportJob(*files) for files in list_manifest(request.manifest, request.modality)]
    except ImportRefusedError as error:
        raise WorkloadError(str(error)) from error


def _choose_format(request: FuseRequest, source: Path) -> Format:
    suffix = _SUFFIXES.get(_get_suffix(request.output))
    if request.format is None:
        return suffix or _guess_format(source)
    chosen = FORMATS[request.format]
    if suffix is not None and suffix != chosen:
        raise WorkloadError(f"output: {request.output} does not end as a {chosen} file does")
    return chosen


def _guess_format(source: Path) -> Format:
    if is_nifti(source):
        return "nifti"
    return "png" if is_raster(source) else "dicom"


def _get_suffix(path: Path) -> str:
    """The known suffix of a result's name, or nothing for a folder's."""
    name = path.name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix) and not path.is_dir()), "")


def _choose_name(stacks: RegisteredStacks, taken: set[str]) -> str:
    """The first source's name; a number for DICOM, whose file names often say who the patient is."""
    first = stacks.stacks.first
    name = first.name if _guess_format(first.planes[0].path) != "dicom" else ""
    name = name.lstrip("/")
    if name and name not in taken and ".." not in Path(name).parts:
        return name
    number = len(taken) + 1
    return f"{name or 'fused'}-{number:03d}"


def _save_figure(path: Path, pair: ImagePair, fused: ByteImage) -> None:
    panels = zip(("first", "second", "fused"), (*show_sources(pair), fused), strict=True)
    path.write_bytes(encode_png(build_figure(list(panels))))
