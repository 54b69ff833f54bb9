"""How a keeper sees the patches of another dataset than its own, and whether it can: see `view_of`.

Channels are matched by name. Patches come in the keeper's order of axes, at its spacing, with its intensities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rehrseg_nnunet.config.guidance import load_config
from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.networks import planned_shape
from rehrseg_nnunet.guided.shape import require_patch
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset

SAME_SPACING = 0.1  # |ln ratio| up to which grids count as the same
OTHER_PATCH = 1.5  # ratio of edges from which instance normalisation sees another context
CT = "CTNormalization"
SMALLEST_CT_STD = 1e-8  # nnU-Net's


def view_of(own: PlannedDataset, keeper: KeeperRun, *, names: Mapping[str, str] | None = None) -> SourceView:
    """What a keeper sees of a dataset.

    Args:
        own: the dataset to be segmented.
        keeper: that is to guide it.
        names: for source channels of the keeper, the dataset's.

    Raises:
        ValueError: channels, intensities, slices or patches that do not fit; names both sides.
    """
    channels = matched_channels(own, keeper, names or {})
    axes = matched_axes(own, keeper)
    intensities = [_intensity(own, keeper, *pair) for pair in zip(channels, keeper.channels.source, strict=True)]
    scales, offsets = zip(*intensities, strict=True)
    view = SourceView(
        channels=channels,
        scales=scales if set(scales) != {1.0} else (),
        offsets=offsets if set(offsets) != {0.0} else (),
        axes=axes if axes != tuple(range(len(axes))) else (),
        spacing_ratio=_spacing_ratio(own, keeper, axes),
    )
    shape = planned_shape(keeper.configuration)
    require_patch(shape, view.patch_size(own.configuration_manager.patch_size, shape.total_strides))
    return view


def matched_channels(own: PlannedDataset, keeper: KeeperRun, names: Mapping[str, str]) -> tuple[int, ...]:
    """For each source channel of the keeper, the dataset's.

    Raises:
        ValueError: one is missing, names do not tell channels apart, or the dataset has the better scan, which new
            cases will not have.
    """
    source, privileged = (keeper.names(numbers) for numbers in (keeper.channels.source, keeper.channels.privileged))
    there: dict[str, list[int]] = {}
    for number, name in own.dataset_json["channel_names"].items():
        there.setdefault(name, []).append(int(number))
    unknown = sorted(set(names) - set(source))
    if unknown:
        raise ValueError(f"guidance.channels must be of the keeper's source channels {source}, got {unknown}")
    both = sorted((set(privileged) - set(source)) & set(there))
    if both:
        raise ValueError(
            f"the dataset must have the usual scan alone, as new cases will, but its channel {both[0]} is the better "
            f"scan of {keeper.run.dataset}; make a dataset without it, or rename it"
        )
    wanted = [names.get(name, name) for name in source]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(
            f"the dataset must have the channel {missing[0]}, which the keeper of {keeper.run.dataset} sees, got "
            f"{', '.join(there)}; say by guidance.channels which of them it is"
        )
    return _in_order(wanted, there, keeper)


def _in_order(wanted: Sequence[str], there: Mapping[str, list[int]], keeper: KeeperRun) -> tuple[int, ...]:
    """Channels by name; those of one name in their order, if both sides have as many."""
    for name in wanted:
        if len(there[name]) != wanted.count(name):
            raise ValueError(
                f"channel_names must tell channels apart, but {name} is the name of {len(there[name])} channels of the "
                f"dataset and stands for {wanted.count(name)} that the keeper of {keeper.run.dataset} sees; give each "
                "its own name in dataset.json, in nnUNet_preprocessed too"
            )
    left = {name: sorted(numbers) for name, numbers in there.items()}
    return tuple(left[name].pop(0) for name in wanted)


def matched_axes(own: PlannedDataset, keeper: KeeperRun) -> tuple[int, ...]:
    """For each axis of the keeper's patches, the dataset's: nnU-Net's plans turn axes.

    Raises:
        ValueError: 2D networks of slices along other axes.
    """
    ours, theirs = (list(side.plans_manager.transpose_forward) for side in (own, keeper.planned))
    axes = tuple(ours.index(axis) for axis in theirs)
    if keeper.dimension == 3:
        return axes
    if axes[0] != 0:
        raise ValueError(
            f"2d slices must be along the keeper's axis {theirs[0]} (of z, y, x), got {ours[0]}; plan with the other "
            "transpose_forward, or train a 3d configuration"
        )
    return tuple(axis - 1 for axis in axes[1:])


def _spacing_ratio(own: PlannedDataset, keeper: KeeperRun, axes: tuple[int, ...]) -> tuple[float, ...]:
    """The dataset's spacing over the keeper's; empty where both are nearly the same along all axes."""
    theirs = keeper.planned.spacing_mm
    ratios = [own.spacing_mm[axis] / spacing for axis, spacing in zip(axes, theirs, strict=True)]
    near = [abs(math.log(ratio)) <= SAME_SPACING for ratio in ratios]
    if all(near):
        return ()
    return tuple(1.0 if same else round(ratio, 6) for ratio, same in zip(ratios, near, strict=True))


def _intensity(own: PlannedDataset, keeper: KeeperRun, channel: int, theirs: int) -> tuple[float, float]:
    """Scale and offset from a channel of the dataset, normalised, to one of the keeper.

    Convention: CT numbers x come as (x - mean) / std, so std / std' and (mean - mean') / std' give (x - mean') / std'
    of the keeper. Before that nnU-Net clips x at the 0.5 and 99.5 % percentiles of its own dataset: the map is right
    between the clipping bounds of both datasets only.

    Raises:
        ValueError: other schemes.
    """
    for what in ("normalization_schemes", "use_mask_for_norm"):
        ours, expected = (
            getattr(side.configuration_manager, what)[number]
            for side, number in ((own, channel), (keeper.planned, theirs))
        )
        if ours != expected:
            name = own.dataset_json["channel_names"][str(channel)]
            raise ValueError(
                f"{what} of channel {name} must be {expected}, as for the keeper of {keeper.run.dataset}, got {ours}; "
                "change one of the two plans and preprocess again"
            )
    if own.configuration_manager.normalization_schemes[channel] != CT:
        return 1.0, 0.0
    (mean, std), (their_mean, their_std) = _ct(own, channel), _ct(keeper.planned, theirs)
    return std / their_std, (mean - their_mean) / their_std


def _ct(planned: PlannedDataset, channel: int) -> tuple[float, float]:
    """Mean and standard deviation by which nnU-Net normalises CT numbers."""
    measured = planned.plans_manager.foreground_intensity_properties_per_channel[str(channel)]
    return measured["mean"], max(measured["std"], SMALLEST_CT_STD)


def doubts_of(own: PlannedDataset, keeper: KeeperRun, view: SourceView) -> list[str]:
    """What may make guidance worse, one sentence each."""
    return [*_other_patches(own, keeper, view), *_stretched_patches(own, keeper, view), *_other_intensities(keeper)]


def _other_intensities(keeper: KeeperRun) -> list[str]:
    if load_config(keeper.configuration).keeper.source_augmentation == "full":
        return []
    return [
        "the keeper was taught without augmented intensities (guidance.keeper.source_augmentation), which the patches "
        "that it guides have: it has never seen any like these; train it with full"
    ]


def _other_patches(own: PlannedDataset, keeper: KeeperRun, view: SourceView) -> list[str]:
    axes = view.axes or tuple(range(keeper.dimension))
    ours = [own.configuration_manager.patch_size[axis] * own.spacing_mm[axis] for axis in axes]
    theirs = [
        voxels * spacing
        for voxels, spacing in zip(
            keeper.planned.configuration_manager.patch_size, keeper.planned.spacing_mm, strict=True
        )
    ]
    if all(abs(math.log(a / b)) <= math.log(OTHER_PATCH) for a, b in zip(ours, theirs, strict=True)):
        return []
    sizes = [" x ".join(f"{length:.0f}" for length in lengths) for lengths in (ours, theirs)]
    return [
        f"patches of {sizes[0]} mm are guided by a keeper of {sizes[1]} mm, whose features depend on the patch: plan "
        "both datasets with patches of similar size"
    ]


def _stretched_patches(own: PlannedDataset, keeper: KeeperRun, view: SourceView) -> list[str]:
    size, strides = own.configuration_manager.patch_size, planned_shape(keeper.configuration).total_strides
    exact = view.patch_size(size, (1,) * len(strides))
    drawn = view.patch_size(size, strides)
    if all(math.log(b / a) <= SAME_SPACING for a, b in zip(exact, drawn, strict=True)):
        return []
    sizes = [" x ".join(map(str, numbers)) for numbers in (exact, drawn, strides)]
    return [
        f"patches of {sizes[0]} voxels of the keeper are drawn to {sizes[1]}, as its strides {sizes[2]} must divide "
        "them: it sees finer voxels than it has learnt; plan with patches that these strides divide"
    ]
