"""Training of the full network in clear, on the pairs of training patients only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fusion_model.backbone import Array32, BackboneConfig
from fusion_model.gradients import Array
from fusion_model.pairs import ImagePair
from fusion_model.teacher import Teacher
from fusion_model.teacher_losses import LossWeights, compute_teacher_loss

CROP = 64
"""Side of a crop: the least that the loss's coarsest scale needs."""

_BLACK_SHARE = 0.9
"""A crop with more black pixels than this is drawn again, a few times."""
_TRIES = 8


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Size, loss and schedule; with the pairs, all that the result depends on up to rounding."""

    config: BackboneConfig = field(default_factory=BackboneConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    steps: int = 600
    crops: int = 4
    """Crops a step."""
    rate: float = 5e-3
    """Peak rate of Adam; it warms up over a twentieth of the steps and falls by a cosine to 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.crops < 1 or self.rate <= 0:
            raise ValueError(
                f"steps, crops and rate must be positive; got {self.steps}, {self.crops}, {self.rate}"
            )


def train_teacher(
    pairs: Sequence[ImagePair],
    settings: TeacherSettings,
    start: Teacher | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Teacher:
    """The network trained on crops of the pairs, every patient drawn equally often.

    `start` continues from a trained network, whose weights are changed. `report` gets (step, loss) about
    twenty times. Raises ValueError without pairs or for an image smaller than a crop.
    """
    draw = CropSource(pairs, settings.seed).draw
    teacher = Teacher.from_seed(settings.config, settings.seed) if start is None else start
    optimiser = torch.optim.Adam(teacher.parameters(), lr=settings.rate, betas=(0.9, 0.99))
    warm = max(1, settings.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / settings.steps)),
    )
    for step in range(settings.steps):
        crops = torch.from_numpy(draw(settings.crops))
        loss = compute_teacher_loss(teacher(crops), crops, settings.loss)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if report is not None and (step % max(1, settings.steps // 20) == 0 or step == settings.steps - 1):
            report(step, float(loss.detach()))
    return teacher


class CropSource:
    """Random crops of pairs, turned and mirrored; the same sequence for the same seed."""

    def __init__(self, pairs: Sequence[ImagePair], seed: int, augment: bool = True) -> None:
        if not pairs:
            raise ValueError("training needs at least one pair, got none")
        small = [pair.name for pair in pairs if min(pair.first.shape) < CROP]
        if small:
            raise ValueError(f"pair {small[0]} is smaller than a crop of {CROP}x{CROP}")
        self._generator = np.random.default_rng([seed, 7])
        self._augment = augment
        patients = sorted({pair.patient for pair in pairs})
        self._images = {p: [pair.planes for pair in pairs if pair.patient == p] for p in patients}
        self._patients = patients

    def draw(self, count: int) -> Array32:
        """(count, 2, CROP, CROP)."""
        return np.stack([self._draw_one() for _ in range(count)]).astype(np.float32)

    def _draw_one(self) -> Array:
        generator = self._generator
        images = self._images[self._patients[int(generator.integers(len(self._patients)))]]
        image = images[int(generator.integers(len(images)))]
        for _ in range(_TRIES):
            row = int(generator.integers(image.shape[1] - CROP + 1))
            column = int(generator.integers(image.shape[2] - CROP + 1))
            crop = image[:, row : row + CROP, column : column + CROP]
            if (crop.max(axis=0) == 0).mean() <= _BLACK_SHARE:
                break
        if self._augment:
            crop = np.rot90(crop, int(generator.integers(4)), axes=(1, 2))
            if generator.random() < 0.5:
                crop = crop[:, :, ::-1]
        return np.asarray(crop)
