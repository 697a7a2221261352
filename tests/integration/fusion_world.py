"""A node with a settled fusion model behind its API, and a requester's pair, to fuse under encryption."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consensus.records import DraftRecord
from fusion_model.pairs import ImagePair
from he.params import get_params
from tests.he.reference import compute_forward
from tests.unit.node_api.fakes import CUSTODY, DRAFT, FakeNode
from workloads.encrypted_fusion import EncryptedFusion
from workloads.fusion import WORKLOAD, FusionSpec
from workloads.fusion_request import build_planes

SMALL = EncryptedFusion("test-2048-60x3", allow_insecure=True)
SPEC = FusionSpec(kernels=(1, 3, 3), planes=("saliency",), skip="maximum")
MODEL = SPEC.encode()
WEIGHTS = WORKLOAD.build_initial_weights(MODEL, 3)


class ModelNode(FakeNode):
    """Its task's settled model is a real one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        publication = self.state.get_publication(self.task)
        assert publication is not None
        draft = replace(DRAFT, model=MODEL, parameters=SPEC.parameters)
        self.state = self.state.with_draft(publication.draft, DraftRecord(draft, CUSTODY.address, True))
        self.settle(WEIGHTS)

    def settle(self, weights: tuple[int, ...]) -> None:
        """The settled model has these weights from now on."""
        last = self.milestones[-1]
        self.milestones[-1] = replace(last, work=replace(last.work, weights=weights))


def make_pair(height: int = 20, width: int = 26, seed: int = 1) -> ImagePair:
    """Smooth random images on the grid of 8-bit files, black at the left."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(2, height, width))
    images = (images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)) / 3
    images[:, :, : width // 3] = 0.0
    first, second = np.rint(images * 255) / 255
    return ImagePair("pair", 0, first, second)


def fuse_in_clear(pair: ImagePair, weights: tuple[int, ...] = WEIGHTS) -> NDArray[np.float64]:
    """F (H, W) of the textbook formulas, before clipping and rounding."""
    planes, skip = build_planes(SPEC, pair)
    margin = SPEC.circuit.margin
    bordered = np.pad(planes, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    params = get_params("ckks-8192-60x3")
    change = compute_forward(params, SPEC.circuit, weights, bordered[None])[1][0]
    fused: NDArray[np.float64] = skip + np.minimum(1, 32 * planes[:2].max(axis=0)) * change
    return fused
