"""A trained fusion model shown at work: a fixed synthetic pair and what the model makes of it, in clear.

The imaging libraries are imported by the call, in whatever process that runs; neither encryption nor a
training library is loaded.
"""

from workloads.base import WorkloadError
from workloads.fusion import KIND, FusionSpec

PREVIEW_SEED = 7
"""Of the phantom: the same for every model, so that models can be compared by eye."""
PREVIEW_SIZE = 192
GAP_PX = 6


def build_preview(kind: str, model: bytes, weights: tuple[int, ...]) -> bytes:
    """PNG (grey with alpha) of both sources and the fused image side by side, with transparent gaps.

    Raises WorkloadError for a model that no picture can be made of.
    """
    if kind != KIND:
        raise WorkloadError(f"kind: there is no picture of {kind!r} models")
    spec = FusionSpec.decode(model)
    if len(weights) != spec.parameters:
        raise WorkloadError(f"weights: the specification has {spec.parameters}, got {len(weights)}")

    from PIL import Image

    from fusion_model.fuse import fuse_luminance
    from fusion_model.phantom import build_phantoms
    from fusion_model.pictures import encode_png, show_sources

    pair = build_phantoms(PREVIEW_SEED, 1, slices=1, size=PREVIEW_SIZE)[0]
    try:
        fused = fuse_luminance(spec.network, weights, pair, spec.settings)
    except ValueError as error:
        raise WorkloadError(f"model: {error}") from error
    panels = [Image.fromarray(image) for image in (*show_sources(pair), fused)]
    sheet = Image.new("LA", (sum(panel.width for panel in panels) + 2 * GAP_PX, PREVIEW_SIZE), (0, 0))
    left = 0
    for panel in panels:
        sheet.paste(panel.convert("LA"), (left, 0))
        left += panel.width + GAP_PX
    return encode_png(sheet)
