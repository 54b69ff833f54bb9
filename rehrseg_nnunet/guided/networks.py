"""Networks of the guidance as nnU-Net's plans describe them.

A configuration holds, beside nnU-Net's keys, the `guidance` block and, once a training has begun, which of the paired
dataset's channels are which (`CHANNELS_KEY`). Networks carry with their weights what they depend on besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rehrseg_nnunet.config.guidance import CHANNELS_KEY, load_config
from rehrseg_nnunet.guided.discriminator import Discriminator, stages_that_fit
from rehrseg_nnunet.guided.keeper import Keeper, KeeperNetwork
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.guided.shape import PAPER_LEVELS, GuidanceShape, fitted_to, guidance_shape
from rehrseg_nnunet.guided.teacher import Teacher

HASH_BYTES = 32


def planned_shape(configuration: Mapping[str, Any]) -> GuidanceShape:
    """Levels, widths and channels under a configuration, inheritance resolved.

    There are fewer levels than `wanted_levels` where a patch has no room for them.

    Raises:
        NotImplementedError: a cascade, or a network without stages.
        ValueError: an invalid block, or a patch that is too small for any levels.
    """
    config = load_config(configuration)
    channels = stored_channels(configuration)
    shape = guidance_shape(
        configuration["architecture"]["arch_kwargs"],
        base_features=config.base_features,
        features_double=config.features_double,
        convs_per_block=config.convs_per_block,
        source_channels=len(channels.source),
        privileged_channels=len(channels.privileged),
    )
    return fitted_to(shape, configuration["patch_size"])


def wanted_levels(configuration: Mapping[str, Any]) -> int:
    """Levels that teacher and keeper have where patches have room for them."""
    return min(PAPER_LEVELS, len(configuration["architecture"]["arch_kwargs"]["strides"]))


def stored_channels(configuration: Mapping[str, Any]) -> PairedChannels:
    """Which channels are which, as a training has put it into its configuration."""
    return PairedChannels(**{role: tuple(numbers) for role, numbers in configuration[CHANNELS_KEY].items()})


def build_teacher(configuration: Mapping[str, Any]) -> Teacher:
    """The teacher, untrained; `image_range` (P,) of its weights is the privileged channels' intensity range."""
    config = load_config(configuration)
    shape = planned_shape(configuration)
    teacher = Teacher(
        shape,
        noise_std=config.teacher.noise_std,
        feature_reconstruction=config.teacher.feature_weight > 0,
        level_restoration=config.level_restoration,
    )
    teacher.register_buffer("image_range", torch.ones(shape.privileged_channels))
    return teacher


def build_keeper(configuration: Mapping[str, Any]) -> KeeperNetwork:
    """The keeper with a teacher's decoder, untrained.

    Its weights hold `image_range` (P,) of the teacher as well, and `teacher_sha256` (32,), the hash of its weights.
    """
    config = load_config(configuration)
    shape = planned_shape(configuration)
    keeper = Keeper(
        shape,
        kernel=config.keeper.kernel,
        recalibration=config.keeper.recalibration,
        level_restoration=config.level_restoration,
        residual=config.keeper.residual,
    )
    network = KeeperNetwork(keeper)
    network.register_buffer("image_range", torch.ones(shape.privileged_channels))
    network.register_buffer("teacher_sha256", torch.zeros(HASH_BYTES, dtype=torch.uint8))
    return network


def build_discriminator(configuration: Mapping[str, Any]) -> Discriminator:
    """The keeper's adversary, with as many stages as the patch has room for."""
    shape = planned_shape(configuration)
    return Discriminator(shape, stages_that_fit(shape, configuration["patch_size"]))


def check_adversary(configuration: Mapping[str, Any]) -> None:
    """Refuse a patch that is too small for the keeper's adversary, if the settings want one.

    Raises:
        ValueError: as above, see `stages_that_fit`.
    """
    if load_config(configuration).keeper.adversarial_weight > 0:
        stages_that_fit(planned_shape(configuration), configuration["patch_size"])


def hash_tensor(sha256: str) -> torch.Tensor:
    """A hash in hexadecimal digits as the (32,) bytes that weights hold."""
    return torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8)
