"""What a keeper sees of another dataset: the same voxels with the same numbers, or a refusal."""

import numpy as np
import pytest
import torch
from keeper_runs import planned, write_keeper
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.keeper_view import doubts_of, view_of
from rehrseg_nnunet.guided.source_view import SourceView


@pytest.fixture
def keeper(tmp_path):
    def write(**options):
        return KeeperRun(write_keeper(tmp_path / str(len(list(tmp_path.iterdir()))), **options))

    return write


def test_two_datasets_of_one_kind(keeper):
    assert view_of(planned(), keeper()) == SourceView(channels=(0,))
    assert view_of(planned(configuration="2d"), keeper(configuration="2d")) == SourceView(channels=(0,))


def test_channels_by_name_or_as_the_settings_say(keeper):
    pairs = keeper(names=("T1", "T2", "T1_7T"))
    assert view_of(planned(("T2", "FLAIR", "T1")), pairs).channels == (2, 0)
    assert view_of(planned(("T2", "mprage")), pairs, names={"T1": "mprage"}).channels == (1, 0)


@pytest.mark.parametrize(
    ("channels", "names", "message"),
    [
        (("T2",), {}, "must have the channel T1, which the keeper of Dataset610_Pairs sees, got T2; say by guidance"),
        (("T1",), {"T1": "mprage"}, "must have the channel mprage"),
        (("T1",), {"T3": "T1"}, r"guidance.channels must be of the keeper's source channels \['T1'\], got \['T3'\]"),
        (("T1", "T1_7T"), {}, "its channel T1_7T is the better scan of Dataset610_Pairs"),
    ],
)
def test_channels_that_do_not_fit(keeper, channels, names, message):
    with pytest.raises(ValueError, match=message):
        view_of(planned(channels), keeper(), names=names)


def test_one_name_for_both_scans_is_no_better_scan(keeper):
    assert view_of(planned(("MRI",)), keeper(names=("MRI", "MRI"))).channels == (0,)


def test_channels_of_one_name(keeper):
    """As nnU-Net's users call them all MRI: in their order if they are as many, else nobody knows which."""
    two = keeper(names=("MRI", "MRI", "7T"))
    assert view_of(planned(("FLAIR", "MRI", "MRI")), two).channels == (1, 2)
    with pytest.raises(ValueError, match="MRI is the name of 1 channels of the dataset and stands for 2 that the keep"):
        view_of(planned(("MRI",)), two)
    with pytest.raises(ValueError, match=r"MRI is the name of 2 channels .* stands for 1 .*; give each its own name"):
        view_of(planned(("MRI", "MRI")), keeper(names=("MRI", "7T")))


@pytest.mark.parametrize("transposes", [((0, 1, 2), (2, 0, 1)), ((1, 2, 0), (2, 1, 0)), ((2, 1, 0), (0, 2, 1))])
def test_axes_as_both_plans_turn_them(keeper, transposes):
    """The keeper gets what it would get of its own preprocessing."""
    ours, theirs = transposes
    volume = torch.rand(2, 3, 4)  # as the reader gives it
    view = view_of(
        planned(transpose=ours, spacing=[1.0] * 3), keeper(transpose=theirs, spacing=[1.0] * 3, patch_size=[24] * 3)
    )
    seen = view.source(volume.permute(ours)[None, None], (1, 1, 1))
    assert torch.equal(seen[0, 0], volume.permute(theirs))


def test_spacing_goes_with_its_axis(keeper):
    """Both spacings are of transposed axes; 5 % count as the same."""
    view = view_of(
        planned(transpose=(0, 1, 2), spacing=[4.0, 1.0, 1.05], patch_size=[16, 32, 32]),
        keeper(transpose=(2, 0, 1), spacing=[1.0, 2.0, 0.5]),
    )
    assert view.axes == (2, 0, 1)
    assert view.spacing_ratio == (1.0, 2.0, 2.0)


def test_2d_slices(keeper):
    turned = view_of(planned(configuration="2d", transpose=(0, 2, 1)), keeper(configuration="2d"))
    assert turned.axes == (1, 0)
    with pytest.raises(ValueError, match=r"2d slices must be along the keeper's axis 0 \(of z, y, x\), got 2"):
        view_of(planned(configuration="2d", transpose=(2, 0, 1)), keeper(configuration="2d"))


def test_ct_numbers_come_in_the_keepers_unit(keeper):
    """Those that neither dataset clips."""
    hu = np.array([-100.0, 0.0, 40.0, 300.0, -900.0, 1500.0])
    ours = {"mean": 50.0, "std": 80.0, "percentile_00_5": -100.0, "percentile_99_5": 2000.0}
    theirs = {"mean": 90.0, "std": 200.0, "percentile_00_5": -1000.0, "percentile_99_5": 400.0}
    view = view_of(
        planned(("CT",), normalization_schemes=["CTNormalization"], intensities={"0": ours}),
        keeper(names=("CT", "CE"), normalization_schemes=["CTNormalization"] * 2, intensities={"0": theirs}),
    )
    image, expected = (CTNormalization(False, side, np.float64).run(hu.copy()) for side in (ours, theirs))
    seen = view.source(torch.tensor(image).view(1, 1, 1, 2, 3), (1, 1, 1)).flatten().numpy()
    np.testing.assert_allclose(seen[:4], expected[:4], rtol=1e-6)
    assert (np.abs(seen - expected) > 1)[4:].all()  # clipped by one dataset alone, as the documentation says


def test_other_intensities_are_refused(keeper):
    with pytest.raises(ValueError, match="normalization_schemes of channel T1 must be ZScoreNormalization, as for the"):
        view_of(planned(normalization_schemes=["RescaleTo01Normalization"]), keeper())
    with pytest.raises(ValueError, match=r"use_mask_for_norm of channel T1 must be False, .*, got True"):
        view_of(planned(use_mask_for_norm=[True]), keeper())


def test_a_patch_of_one_voxel_at_the_bottleneck_is_refused(keeper):
    with pytest.raises(ValueError, match="patch_size must leave more than one voxel"):
        view_of(planned(patch_size=[2, 4, 4]), keeper())


@pytest.mark.parametrize(("augmentation", "doubts"), [("full", 0), ("spatial", 1)])
def test_a_keeper_that_has_seen_no_augmented_intensities_is_doubted(keeper, augmentation, doubts):
    """A guided training has nnU-Net's augmentation, whatever the keeper's had."""
    own = planned()
    pairs = keeper(guidance={"base_features": 4, "keeper": {"source_augmentation": augmentation}})
    said = doubts_of(own, pairs, view_of(own, pairs))
    assert len(said) == doubts
    assert all("train it with full" in line for line in said)


@pytest.mark.parametrize(("edge", "doubts"), [(24, 0), (32, 0), (48, 1), (12, 1)])
def test_patches_of_another_size_are_doubted(keeper, edge, doubts):
    own, pairs = planned(patch_size=[16, edge, 24]), keeper()
    said = doubts_of(own, pairs, view_of(own, pairs))
    assert len(said) == doubts
    if doubts:
        assert said[0].startswith(f"patches of 48 x {edge} x 24 mm are guided by a keeper of 48 x 24 x 24 mm")


@pytest.mark.parametrize(("edge", "doubts"), [(24, 0), (23, 0), (22, 0), (21, 1)])
def test_patches_far_from_the_keepers_strides_are_doubted(keeper, edge, doubts):
    """Its strides are 2, 4, 4; 22 are drawn to 24, within 10 %."""
    own, pairs = planned(patch_size=[16, 24, edge]), keeper()
    said = doubts_of(own, pairs, view_of(own, pairs))
    assert len(said) == doubts
    if doubts:
        assert said[0].startswith("patches of 16 x 24 x 21 voxels of the keeper are drawn to 16 x 24 x 24, as its stri")
