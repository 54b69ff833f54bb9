"""Levels from nnU-Net's architectures, and what is refused."""

import dataclasses
import json

import pytest
from guidance_shapes import PATCHES, shape_of

from rehrseg_nnunet.guided.shape import GuidanceShape, fitted_to, guidance_shape, level_sizes, require_patch

PLAIN_3D = {
    "n_stages": 6,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
}
PLAIN_2D = {
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 7,
    "strides": [[1, 1], *[[2, 2]] * 6],
}


def test_the_first_five_stages_of_a_3d_plan():
    shape = guidance_shape(PLAIN_3D, base_features=8, source_channels=2)
    assert shape == GuidanceShape(
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        widths=(8, 16, 32, 64, 128),
        convs_per_block=1,
        source_channels=2,
        privileged_channels=1,
    )
    assert (shape.levels, shape.dimension) == (5, 3)


def test_a_2d_plan_has_one_width_and_two_convolutions():
    shape = guidance_shape(PLAIN_2D, base_features=16)
    assert shape.widths == (16,) * 5
    assert shape.convs_per_block == 2
    assert shape.strides == ((1, 1), *((2, 2),) * 4)


def test_what_is_said_goes_before_the_dimension():
    assert guidance_shape(PLAIN_2D, base_features=4, features_double=True).widths == (4, 8, 16, 32, 64)
    assert guidance_shape(PLAIN_3D, base_features=4, features_double=False).widths == (4,) * 5
    assert guidance_shape(PLAIN_3D, base_features=4, convs_per_block=3).convs_per_block == 3


def test_fewer_stages_give_fewer_levels():
    few = {name: value[:3] if name in ("strides", "kernel_sizes") else value for name, value in PLAIN_3D.items()}
    assert guidance_shape(few, base_features=4).widths == (4, 8, 16)


def test_one_number_for_all_axes():
    architecture = PLAIN_2D | {"strides": [1, 2, [2, 1]], "kernel_sizes": [3, 3, 3]}
    shape = guidance_shape(architecture, base_features=4)
    assert shape.strides == ((1, 1), (2, 2), (2, 1))
    assert shape.kernels == ((3, 3),) * 3


def test_it_comes_back_from_json():
    shape = shape_of("thick slices", source_channels=2)
    assert GuidanceShape(**json.loads(json.dumps(dataclasses.asdict(shape)))) == shape


def test_networks_without_stages_are_refused():
    with pytest.raises(NotImplementedError, match="lists strides and kernel_sizes"):
        guidance_shape({"patch_embed_size": [8, 8, 8]}, base_features=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (4, 8, 18)}, r"widths must be multiples of 4, got \[4, 8, 18\]"),
        ({"widths": (0, 8, 16)}, "widths must be multiples of 4"),
        ({"widths": (4, 8)}, "as many"),
        ({"strides": [(2, 2, 2)] * 3}, "first stage's strides must be 1"),
        ({"strides": [(1, 1, 1), (2, 2), (2, 2, 2)]}, "3 axes at every level"),
        ({"convs_per_block": 0}, "convs_per_block must be at least 1, got 0"),
        ({"source_channels": 0}, "source_channels must be at least 1, got 0"),
        ({"privileged_channels": 0}, "privileged_channels must be at least 1, got 0"),
        ({"strides": [(1, 1, 1)], "kernels": [(3, 3, 3)], "widths": (4,)}, "at least two levels, got 1"),
        ({"strides": [(1,), (2,)], "kernels": [(3,), (3,)], "widths": (4, 8)}, "2 or 3 axes, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shape_of("cube", **changes)


@pytest.mark.parametrize(("name", "patch"), PATCHES)
def test_patches_of_more_than_one_voxel_at_the_end_are_allowed(name, patch):
    require_patch(shape_of(name), patch)


@pytest.mark.parametrize(
    ("name", "patch"), [("cube", (7, 7, 7)), ("cube", (16, 16, 3)), ("plane", (16, 31)), ("thick slices", (1, 32, 32))]
)
def test_a_bottleneck_of_one_voxel_or_none_is_refused(name, patch):
    with pytest.raises(ValueError, match=r"more than one voxel at the coarsest of \d levels"):
        require_patch(shape_of(name), patch)


@pytest.mark.parametrize("function", [require_patch, fitted_to])
def test_patches_of_another_dimension_are_refused(function):
    with pytest.raises(ValueError, match=r"patch_size must have 3 axes, got \[32, 32\]"):
        function(shape_of("cube"), (32, 32))


@pytest.mark.parametrize(("name", "patch"), PATCHES)
def test_patches_with_room_for_all_levels_have_all(name, patch):
    assert fitted_to(shape_of(name), patch) == shape_of(name)


@pytest.mark.parametrize(
    ("name", "patch", "levels"),
    [
        ("five levels", (16, 16, 16), 4),
        ("five levels", (8, 8, 17), 4),
        ("five levels", (8, 8, 8), 3),
        ("five levels", (3, 64, 64), 2),
        ("cube", (2, 2, 4), 2),
        ("plane", (16, 31), 4),
        ("thick slices", (1, 32, 32), 3),
    ],
)
def test_levels_without_room_are_left_out(name, patch, levels):
    """The coarsest, so that all of the others are as they were; one level more would be refused."""
    whole, fitted = shape_of(name), fitted_to(shape_of(name), patch)
    assert fitted.levels == levels
    for table in ("strides", "kernels", "widths"):
        assert getattr(fitted, table) == getattr(whole, table)[:levels]
    require_patch(fitted, patch)
    more = {table: getattr(whole, table)[: levels + 1] for table in ("strides", "kernels", "widths")}
    with pytest.raises(ValueError, match="more than one voxel"):
        require_patch(shape_of(name, **more), patch)


def test_a_patch_without_room_for_two_levels_is_refused_with_a_remedy():
    message = r"second level .*, got \[2, 2, 3\], which leaves \[1, 1, 1\]; give .* a larger patch_size"
    with pytest.raises(ValueError, match=message):
        fitted_to(shape_of("cube"), (2, 2, 3))


def test_sizes_are_rounded_down():
    assert level_sizes(shape_of("thick slices"), (5, 19, 17)) == [(5, 19, 17), (5, 9, 8), (5, 4, 4), (2, 2, 2)]
