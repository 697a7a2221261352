"""Encrypted fusion as JSON: what a client is told of its request."""

from pydantic import Field

from node.api.fields import Count, Hex32, Model
from node.fusions import FusionDesk, FusionRecord


class FusionModel(Model):
    """One encrypted fusion. The id is its only key: keep it to yourself."""

    id: Hex32
    task: Hex32
    weights: Hex32 = Field(description="Digest of the weights that it is evaluated with")
    tile: Count = Field(description="Side of a tile's result, pixels")
    state: str = Field(description="`waiting`, `running`, `done` or `failed`")
    detail: str = Field(description="Why it failed; empty otherwise")
    ahead: Count = Field(description="Requests that are evaluated before this one")
    progress: float = Field(ge=0, le=1, description="Part of the evaluation that is done")
    request_bytes: Count
    result_bytes: Count
    seconds: float | None = Field(description="How long the evaluation took, once it has ended")
    keep_s: float = Field(description="How long a result is kept, seconds; delete it once you have it")


def build_fusion(desk: FusionDesk, record: FusionRecord) -> FusionModel:
    return FusionModel(
        id=record.id.hex(),
        task=record.order.task.hex(),
        weights=record.order.digest.hex(),
        tile=record.order.tile,
        state=record.state.value,
        detail=record.detail,
        ahead=desk.count_ahead(record),
        progress=record.progress,
        request_bytes=record.sizes.request,
        result_bytes=record.sizes.result,
        seconds=record.seconds,
        keep_s=desk.settings.keep_s,
    )
