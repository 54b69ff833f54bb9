"""The `guidance` block of an nnU-Net plans configuration: settings of the method that a better scan guides.

Its paper is Oh et al., arXiv 2402.08409 (UHF-guided segmentation); `paper` and `released code` below are its authors'.
It stands beside nnU-Net's own keys, with or without a `rehrseg` block::

    "configurations": {"3d_fullres": {..., "guidance": {"base_features": 16, "keeper": {"kernel": 7}}}}

Without the block, every key has its default. Unlike `rehrseg` it needs no thick slices: any 2d or 3d configuration but
a cascade will do. docs/reference/settings.md is generated from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rehrseg_nnunet.config.changed_defaults import with_earlier_defaults
from rehrseg_nnunet.config.models import OURS, PAPER, RELEASE, StrictModel, validate_block

BLOCK = "guidance"
GROWTHS = 4  # a dense block's input and its three growths: widths are multiples of it
CHANNELS_KEY, KEEPER_KEY = "guidance_channels", "guidance_keeper"
WRITTEN_BY_TRAININGS = (CHANNELS_KEY, KEEPER_KEY)  # beside the block, in the plans that are kept with a model


class TeacherConfig(StrictModel):
    """The teacher: an autoencoder of the better scan, whose features the keeper learns."""

    epochs: PositiveInt = Field(
        default=100,
        description="epochs of 250 steps (the released code: 1,400 steps, each on a whole volume)",
        json_schema_extra=RELEASE,
    )
    noise_std: float = Field(
        default=0.3,
        ge=0,
        description="standard deviation of the Gaussian noise on the features, in training alone (the released code "
        "has uniform noise of 0.29 that is not centred)",
        json_schema_extra=OURS,
    )
    image_weight: float = Field(
        default=100.0,
        ge=0,
        description="weight of the L1 distance of the images, in units of the better scan's robust range",
        json_schema_extra=RELEASE,
    )
    feature_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of the feature reconstruction loss: each level must be told by the level below it",
        json_schema_extra=RELEASE,
    )


class KeeperConfig(StrictModel):
    """The knowledge keeper: from the usual scan alone to the teacher's features of the better one."""

    dataset: str | int | None = Field(
        default=None,
        description="number or name of the paired dataset whose keeper guides a segmentation; null takes the only one "
        "that has a finished keeper. REHRSEG_KEEPER goes before it",
        json_schema_extra=OURS,
    )
    other_subjects: bool = Field(
        default=False,
        description="cases of the paired dataset are other subjects than those of the same names that are segmented; "
        "false refuses a keeper that was trained on a validation case",
        json_schema_extra=OURS,
    )
    epochs: PositiveInt = Field(
        default=100,
        description="epochs of 250 steps (the released code: 1,400 steps, each on a whole volume)",
        json_schema_extra=RELEASE,
    )
    kernel: PositiveInt = Field(
        default=3,
        description="edge of the kernels of its blocks, odd (released code: 7, with ten times the parameters)",
        json_schema_extra=OURS,
    )
    recalibration: bool = Field(
        default=True,
        description="weigh each position of its features by its likeness to the strongest one and to the mean "
        "(position-aware recalibration)",
        json_schema_extra=RELEASE,
    )
    residual: bool = Field(
        default=True,
        description="start from the teacher's features of the usual scan, and learn what they lack; false learns all "
        "of the better scan's features from the usual scan",
        json_schema_extra=OURS,
    )
    distillation_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of the squared distance of its features and the teacher's",
        json_schema_extra=RELEASE,
    )
    matching_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of the squared distance of their mean and standard deviation over the channels",
        json_schema_extra=RELEASE,
    )
    image_weight: float = Field(
        default=100.0,
        ge=0,
        description="weight of the L1 distance of the image that the teacher's decoder makes of its features",
        json_schema_extra=RELEASE,
    )
    adversarial_weight: float = Field(
        default=0.5,
        ge=0,
        description="weight of the adversary, least squares; 0 trains without one",
        json_schema_extra=RELEASE,
    )
    source_augmentation: Literal["full", "spatial"] = Field(
        default="full",
        description="augmentation of its input: `full` is nnU-Net's, `spatial` leaves intensities as they are. The "
        "better scan is moved alike and keeps its intensities either way",
        json_schema_extra=OURS,
    )

    @model_validator(mode="after")
    def _odd(self) -> KeeperConfig:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        return self


class FusionConfig(StrictModel):
    """Fusion of the keeper's features into a segmentation network."""

    kind: Literal["adaptive", "scalar", "decoder_only"] = Field(
        default="adaptive",
        description="`adaptive` fusion modules, two `scalar` weights a level (the method's MICCAI 2022 version), or "
        "`decoder_only`: the keeper's features in the encoder's place",
        json_schema_extra=PAPER,
    )
    guides: Literal["all", "same_level"] = Field(
        default="all",
        description="whether every stage sees the keeper's features of all levels, or of its own alone",
        json_schema_extra=PAPER,
    )
    refinement: bool = Field(
        default=True,
        description="weigh what is added channel by channel, positive and negative parts apart",
        json_schema_extra=PAPER,
    )
    hidden: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="width inside a fusion module as a share of its stage's (released code: 1)",
        json_schema_extra=OURS,
    )
    start: Literal["identity", "paper"] | None = Field(
        default=None,
        description="`identity`: at the first step the network gives what the trained baseline gives; `paper`: random "
        "features are added. null: `identity` with `from_baseline`, else, and in REHRSeg's quality mode, `paper`, "
        "which learns faster from scratch",
        json_schema_extra=OURS,
    )
    stages: tuple[PositiveInt, ...] | None = Field(
        default=None,
        min_length=1,
        description="which stages of the encoder are guided, from 1 (full resolution) on; null: all",
        json_schema_extra=RELEASE,
    )

    @model_validator(mode="after")
    def _stages_once(self) -> FusionConfig:
        if self.stages is not None and len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages must differ, got {self.stages}")
        return self


class GuidanceConfig(StrictModel):
    """The whole block."""

    base_features: PositiveInt = Field(
        default=8,
        multiple_of=GROWTHS,
        description="features of teacher and keeper at full resolution (released code: 16)",
        json_schema_extra=OURS,
    )
    features_double: bool | None = Field(
        default=None,
        description="whether each level has twice the features of the one above; null: in 3D, not in 2D",
        json_schema_extra=RELEASE,
    )
    convs_per_block: PositiveInt | None = Field(
        default=None,
        description="convolutions in a block of teacher and keeper; null: 1 in 3D, 2 in 2D",
        json_schema_extra=RELEASE,
    )
    level_restoration: bool = Field(
        default=True,
        description="take a patch's mean and standard deviation away before the networks, which cannot see them, and "
        "give them back to the image",
        json_schema_extra=OURS,
    )
    batch_size: PositiveInt | None = Field(
        default=None,
        description="patches a step of teacher and keeper; null: the plans' (released code: one volume)",
        json_schema_extra=OURS,
    )
    learning_rate: PositiveFloat = Field(
        default=2e-4,
        description="Adam's for teacher, keeper and adversary",
        json_schema_extra=RELEASE,
    )
    schedule: Literal["constant", "polynomial", "one_cycle"] = Field(
        default="constant",
        description="how that learning rate changes: `polynomial` falls to 0 as nnU-Net's does; in `one_cycle` it is "
        "the peak",
        json_schema_extra=RELEASE,
    )
    teacher: TeacherConfig = Field(default=TeacherConfig(), description="first training")
    keeper: KeeperConfig = Field(default=KeeperConfig(), description="second training")
    checkpoint: Literal["final", "best"] = Field(
        default="final",
        description="which checkpoint of teacher and keeper the next training takes (released code: `best`)",
        json_schema_extra=OURS,
    )
    channels: Mapping[str, str] | None = Field(
        default=None,
        description="for each source channel of the keeper, by name, the segmentation dataset's channel; null: the one "
        "of the same name",
        json_schema_extra=OURS,
    )
    fusion: FusionConfig = Field(default=FusionConfig(), description="what guides a segmentation")
    from_baseline: bool = Field(
        default=True,
        description="whether guided trainings go on from the fold's finished baseline, if there is one; false trains "
        "from scratch, guided from the first step",
        json_schema_extra=RELEASE,
    )
    learning_rate_from_trained: PositiveFloat = Field(
        default=1e-3,
        description="SGD's initial learning rate, in ContinuedBaselineTrainer too, when the segmentation starts from a "
        "trained network; else it is nnU-Net's. A `rehrseg` block beside it must have the same",
        json_schema_extra=OURS,
    )


class ResolvedGuidance(GuidanceConfig):
    """The block of a configuration whose dimension and batch are known, from `load_config`."""

    features_double: bool = Field(description="whether each level has twice the features of the one above")
    convs_per_block: PositiveInt = Field(description="convolutions in a block of teacher and keeper")
    batch_size: PositiveInt = Field(description="patches a step of teacher and keeper")


def parse_block(block: Mapping[str, Any]) -> GuidanceConfig:
    """Validate a `guidance` block.

    Raises:
        ValueError: names every refused key by its path.

    Example:
        >>> parse_block({"keeper": {"kernel": 3}}).keeper.kernel
        3
        >>> parse_block({"keeper": {"kernels": 3}})
        Traceback (most recent call last):
        ValueError: guidance.keeper.kernels: unknown key
    """
    return validate_block(block, GuidanceConfig, name=BLOCK)


def change_config(config: ResolvedGuidance, changes: Mapping[str, Any]) -> ResolvedGuidance:
    """The block with other settings, for variants of a training.

    Args:
        config: the block.
        changes: values by key, those of its parts in a mapping of their own.

    Raises:
        ValueError: names every refused key by its path.
    """
    block = config.model_dump()
    for key, value in changes.items():
        block[key] = {**block[key], **value} if isinstance(value, Mapping) else value
    return validate_block(block, ResolvedGuidance, name=BLOCK)


def load_config(configuration: Mapping[str, Any]) -> ResolvedGuidance:
    """The `guidance` block of a resolved configuration; what depends on its dimension and batch is filled in.

    Args:
        configuration: `ConfigurationManager.configuration`, i.e. a configuration of the plans with inheritance
            resolved.

    Raises:
        NotImplementedError: a cascaded configuration.
        ValueError: an invalid block.

    Example:
        >>> config = load_config({"spacing": (1.0, 1.0), "batch_size": 12})
        >>> config.features_double, config.convs_per_block, config.batch_size
        (False, 2, 12)
    """
    if configuration.get("previous_stage") is not None:
        raise NotImplementedError(
            "guidance does not support cascades: the previous stage's segmentation is an input that the keeper, which "
            "sees images alone, does not have; train 3d_fullres instead"
        )
    block = configuration.get(BLOCK, {})
    stored = any(key in configuration for key in WRITTEN_BY_TRAININGS)
    config = parse_block(with_earlier_defaults(block, BLOCK) if stored else block)
    is_3d = len(configuration["spacing"]) == 3
    resolved = {
        "features_double": is_3d,
        "convs_per_block": 1 if is_3d else 2,
        "batch_size": configuration["batch_size"],
        **{key: value for key, value in config if value is not None},
    }
    if config.fusion.start is None:
        start = "identity" if config.from_baseline else "paper"
        resolved["fusion"] = config.fusion.model_copy(update={"start": start})
    return ResolvedGuidance(**resolved)
