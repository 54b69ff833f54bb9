"""GPU memory of a training step by formula: `python -m benchmarks.gpu.memory` prints the table of docs/reference.

What the backward pass needs is kept by the forward pass: for every convolution its input, for every normalisation and
activation what its derivative takes. Counted in values per voxel, for networks whose layers run in float16:

- U-Net: a convolution, its normalisation and its activation in place keep two tensors of their channels; a decoder
  stage also keeps the concatenation that its first convolution reads.
- Self-SR network of width b: 49.5 b for backbone and decoder, 3 r b for what merges the slices and for U,
  N r (3 + C + K) for the candidates, per pixel of a window's plane.
- HR head: its hidden features at r times as many slices, and the thick slices' logits.

The losses' class maps are float32: `LOSS_MAPS` of them for each class. Weights, gradients and the optimiser's moments
are float32 as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HALF, FULL, GIB = 2, 4, 2**30
LOSS_MAPS = 6  # logits, log-softmax, softmax, one-hot and two gradients
CONTEXT_GIB = 0.8  # CUDA, cuDNN and NCCL
SPARE = 1.3  # workspaces of convolutions, gradients on their way, fragmentation
FEATURES = (32, 64, 128, 256, 320, 320)
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
CONVOLUTIONS = 2
SGD_MOMENTS, ADAM_MOMENTS = 1, 2


@dataclass(frozen=True)
class Training:
    """What a training's memory depends on.

    Attributes:
        name: of the trainer.
        parameters: of its network.
        moments: that the optimiser keeps for each.
        values: that the forward pass keeps in float16, for the whole batch.
        class_maps: float32 values of the losses for the whole batch.
    """

    name: str
    parameters: int
    moments: int
    values: float
    class_maps: float

    @property
    def gib(self) -> float:
        """Weights, gradients, moments and float16 copies; activations; losses; spare room and CUDA's own."""
        weights = self.parameters * (FULL * (2 + self.moments) + HALF)
        return (SPARE * (self.values * HALF + self.class_maps * FULL) + weights) / GIB + CONTEXT_GIB


def unet_values_per_voxel(
    features: Sequence[int], strides: Sequence[Sequence[int]], *, convolutions: int = CONVOLUTIONS, channels: int = 1
) -> float:
    """Values that nnU-Net's plain U-Net keeps for the backward pass, per voxel of the patch.

    Args:
        features: per stage.
        strides: per stage.
        convolutions: per stage, in encoder and decoder.
        channels: of the input.
    """
    voxels = [1 / math.prod(math.prod(stride) for stride in strides[: stage + 1]) for stage in range(len(strides))]
    encoder = sum(2 * convolutions * f * v for f, v in zip(features, voxels, strict=True))
    decoder = sum((2 + 2 * convolutions) * f * v for f, v in zip(features[:-1], voxels[:-1], strict=True))
    return channels + encoder + decoder


def self_sr_values_per_pixel(
    *, base_features: int, candidates: int, factor: int, image_channels: int, label_channels: int
) -> float:
    """Values that the self-SR network keeps for the backward pass, per pixel of a window's plane."""
    head = candidates * factor * (3 + image_channels + label_channels)
    return (49.5 + 3 * factor) * base_features + head


def hr_head_values_per_voxel(*, hidden_features: int, factor: int, classes: int) -> float:
    """What the HR head adds, per voxel of the thick-slice patch."""
    return hidden_features * factor + classes


def default_trainings(
    patch: Sequence[int], batch_size: int, *, parameters: dict[str, int], classes: int, factor: int = 4
) -> list[Training]:
    """The default settings on a patch of a U-Net plan."""
    voxels = batch_size * math.prod(patch)
    unet = unet_values_per_voxel(FEATURES, STRIDES)
    head = hr_head_values_per_voxel(hidden_features=16, factor=factor, classes=classes)
    maps = LOSS_MAPS * classes
    pixels = 64 * 64 * 64  # windows of 64 x 64 pixels
    sr = self_sr_values_per_pixel(
        base_features=64, candidates=16, factor=factor, image_channels=1, label_channels=classes
    )
    return [
        Training("nnUNetTrainer", parameters["unet"], SGD_MOMENTS, voxels * unet, voxels * maps),
        Training(
            "REHRSegTrainer",
            parameters["unet"] + parameters["self_sr"],  # the teacher has neither gradients nor moments: an upper bound
            SGD_MOMENTS,
            voxels * (unet + head),
            voxels * maps * (1 + factor),
        ),
        Training("SelfSRTrainer", parameters["self_sr"], ADAM_MOMENTS, pixels * sr, pixels * factor * maps),
    ]


PARAMETERS = {"unet": 31_000_000, "self_sr": 43_000_000}
PATCHES = {
    "10 x 56 x 40 (Hippocampus)": ((10, 56, 40), 2, 3),
    "32 x 128 x 128": ((32, 128, 128), 2, 8),
    "20 x 320 x 256": ((20, 320, 256), 2, 3),
}
CARD_MARGIN = 1.1  # a card of 8 GB has less to give, and the screen takes some
CARDS_GIB = (4, 6, 8, 12, 16, 24, 40, 80)


def table() -> str:
    """GiB by trainer and patch, and the smallest usual card that has as much, as markdown."""
    lines = []
    for name, (patch, batch, classes) in PATCHES.items():
        trainings = default_trainings(patch, batch, parameters=PARAMETERS, classes=classes)
        cells = [f"{training.gib:.1f}" for training in trainings]
        card = min(size for size in CARDS_GIB if size >= CARD_MARGIN * max(training.gib for training in trainings))
        lines.append([name, str(batch), str(classes), *cells, f"{card} GB"])
    head = ["patch", "batch", "classes", *(f"{training.name}, GiB" for training in trainings), "smallest card"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    print(table())
