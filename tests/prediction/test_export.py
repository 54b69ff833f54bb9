"""Several grids in one pass, what else is written on each, and models without thick slices."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.export import PlacedCase, stems
from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid
from rehrseg_nnunet.prediction.spacing_grid import SpacingGrid

GRIDS = (HRGrid(), NativeGrid(), SpacingGrid((1.0, 1.0, 1.0)))


@dataclass(frozen=True)
class CentroidWriter:
    """Writes where in mm (RAS) what is not background lies."""

    def __call__(self, case: PlacedCase) -> None:
        index = np.argwhere(case.logits.argmax(0) > 0)
        points = index @ case.affine[:3, :3].T + case.affine[:3, 3]
        Path(f"{case.output}_centroid.json").write_text(json.dumps(points.mean(0).tolist()))


@pytest.fixture
def scan(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    image = tiny.blank((24, 22, 7), (1.1, 1.0, 4.0), rotation=tiny.oblique())
    sitk.WriteImage(tiny.ball(image), str(folder / "ball_0000.nii.gz"))
    return folder


def labels(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_several_grids_are_what_each_is_alone_from_logits_that_are_computed_once(tiny, scan, tmp_path):
    predictor = tiny.predictor(grid=GRIDS)
    passes = []
    predictor.network.register_forward_hook(lambda *_: passes.append(1))
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "out"), save_probabilities=True)
    once = len(passes)
    names = {f"ball_{grid}" for grid in ("hr", "native", "1mm")}
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written - {"dataset.json", "plans.json", "predict_from_raw_data_args.json"} == {
        name + ending for name in names for ending in (".nii.gz", ".npz", ".pkl")
    }
    for grid in GRIDS:
        alone = tmp_path / f"alone_{grid.name}"
        alone.mkdir()
        passes.clear()
        predictor = tiny.predictor(grid=grid)
        predictor.network.register_forward_hook(lambda *_: passes.append(1))
        predictor.predict_from_files_sequential(str(scan), str(alone), save_probabilities=True)
        assert len(passes) == once
        file = tmp_path / "out" / f"ball_{grid.name}.nii.gz"
        np.testing.assert_array_equal(labels(file), labels(alone / "ball.nii.gz"))
        assert tiny.same_grid(sitk.ReadImage(str(file)), sitk.ReadImage(str(alone / "ball.nii.gz")))
        together, own = (
            np.load(f)["probabilities"] for f in (file.with_name(f"ball_{grid.name}.npz"), alone / "ball.npz")
        )
        np.testing.assert_array_equal(together, own)
        with open(alone / "ball.pkl", "rb") as stored:
            assert "output_grids" not in pickle.load(stored)


def test_continuing_looks_at_every_grid(tiny, scan, tmp_path):
    predictor = tiny.predictor(grid=GRIDS)
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "out"))
    files = {grid.name: tmp_path / "out" / f"ball_{grid.name}.nii.gz" for grid in GRIDS}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "out"), overwrite=False)
    assert {name: file.stat().st_mtime_ns for name, file in files.items()} == before
    files["native"].unlink()
    (tmp_path / "out" / "ball.nii.gz").touch()  # of an earlier run on one grid: says nothing of these
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "out"), overwrite=False)
    assert files["native"].is_file()
    # probabilities that are asked for are missing
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "out"), save_probabilities=True, overwrite=False)
    assert len(list((tmp_path / "out").glob("*.npz"))) == 3


@pytest.mark.parametrize("axis", [0, 2])
def test_writers_see_every_grid_where_the_object_is(tiny, tmp_path, axis):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    size, spacing = ((24, 22, 7), (1.1, 1.0, 4.0)) if axis == 0 else ((7, 22, 24), (4.0, 1.0, 1.1))
    image = tiny.blank(size, spacing, rotation=tiny.oblique())
    sitk.WriteImage(tiny.ball(image), str(tmp_path / "in" / "ball_0000.nii.gz"))
    predictor = tiny.predictor(grid=GRIDS, writers=[CentroidWriter()], axis=axis)
    predictor.predict_from_files_sequential(str(tmp_path / "in"), str(tmp_path / "out"))
    for grid in GRIDS:
        centroid = json.loads((tmp_path / "out" / f"ball_{grid.name}_centroid.json").read_text())
        np.testing.assert_allclose(centroid, tiny.CENTRE_MM * [-1, -1, 1], atol=0.2)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_a_writer_cannot_write_leaves_nothing_behind(tiny, scan, tmp_path):
    def fail(case):
        Path(f"{case.output}.half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match=r"ball.*no space"):
        tiny.predictor(grid=GRIDS, writers=[fail]).predict_from_files_sequential(str(scan), str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*ball*"))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_worker_processes_write_what_one_process_writes(tiny, scan, tmp_path):
    predictor = tiny.predictor(grid=GRIDS, writers=[CentroidWriter()])
    (tmp_path / "one").mkdir()
    predictor.predict_from_files_sequential(str(scan), str(tmp_path / "one"))
    predictor.predict_from_files(
        str(scan), str(tmp_path / "out"), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )
    for grid in GRIDS:
        name = f"ball_{grid.name}"
        np.testing.assert_array_equal(*(labels(tmp_path / f / f"{name}.nii.gz") for f in ("one", "out")))
        assert (tmp_path / "out" / f"{name}_centroid.json").is_file()


def test_stems():
    assert stems("out/a.b", [HRGrid()]) == ["out/a.b"]
    assert stems("out/a.b", GRIDS) == ["out/a.b_hr", "out/a.b_native", "out/a.b_1mm"]


def thin_network(tiny, heads=2, dimensions=3):
    torch.manual_seed(0)
    network = tiny.ThresholdNetwork(heads)
    convolution = torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d
    network.encoder = torch.nn.Identity()
    network.decoder = torch.nn.Sequential(convolution(1, heads, 3, padding=1))
    return network


@pytest.mark.parametrize(("spacing", "patch"), [((2.0, 2.0, 2.1), (6, 16, 16)), ((2.0, 2.1), (16, 16))])
def test_a_model_without_thick_slices_is_on_its_own_grid_what_nnunet_says(tiny, scan, tmp_path, spacing, patch):
    """Where nothing is resampled, voxel for voxel, in 3D and in 2D."""
    image = tiny.blank((20, 18, 16), (2.1, 2.0, 2.0))
    sitk.WriteImage(tiny.ball(image), str(scan / "ball_0000.nii.gz"))
    network = thin_network(tiny, dimensions=len(spacing))
    mirrors = tuple(range(len(spacing)))
    own = tiny.predictor(network=network, spacing_of_plans=spacing, patch=patch)
    own.allowed_mirroring_axes = mirrors
    assert own.grids == (NativeGrid(),)
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.manual_initialization(
        network, own.plans_manager, own.configuration_manager.lr, own.list_of_parameters, own.dataset_json, "", mirrors
    )
    for predictor, name in ((own, "out"), (stock, "stock")):
        (tmp_path / name).mkdir(exist_ok=True)
        predictor.predict_from_files_sequential(str(scan), str(tmp_path / name), save_probabilities=True)
    assert labels(tmp_path / "out" / "ball.nii.gz").any()
    np.testing.assert_array_equal(*(labels(tmp_path / name / "ball.nii.gz") for name in ("out", "stock")))
    probabilities = [np.load(tmp_path / name / "ball.npz")["probabilities"] for name in ("out", "stock")]
    np.testing.assert_allclose(*probabilities, atol=1e-3)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.0, 2.0)])
def test_the_hr_grid_is_refused_where_slices_are_not_thick(tiny, spacing):
    network = thin_network(tiny, dimensions=len(spacing))
    with pytest.raises(ValueError, match=r"--grid hr makes thin slices of .* thick ones.*choose --grid native"):
        tiny.predictor(network=network, spacing_of_plans=spacing, grid=[NativeGrid(), HRGrid()])


def test_slices_of_a_2d_model_are_interpolated_between(tiny, predict_ball):
    network = tiny.ThresholdNetwork(2)
    network.encoder, network.decoder = torch.nn.Identity(), torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1))
    with torch.no_grad():
        network.decoder[0].weight[:] = torch.tensor([0.0, 3.0]).view(2, 1, 1, 1)
        network.decoder[0].bias.zero_()
    options = {"network": network, "spacing_of_plans": (1.0, 1.1), "patch": (16, 16), "mirror": False}
    _, result, probabilities = predict_ball(SpacingGrid((1.1, 1.0, 1.0)), rotation=tiny.oblique(), **options)
    assert result.GetSize() == (24, 22, 28)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)
    areas = labels_of(result).sum((1, 2))
    assert len(np.unique(areas[areas > 0])) > 3  # no copied slices
    assert probabilities.shape == (2, 28, 22, 24)


def labels_of(image):
    return sitk.GetArrayFromImage(image)


@pytest.fixture
def cascade(tiny):
    """A cascade whose network says what its previous stage said."""

    def make(**options):
        network = tiny.ThresholdNetwork(2)
        network.encoder, network.decoder = torch.nn.Identity(), torch.nn.Sequential(torch.nn.Conv3d(2, 2, 1))
        with torch.no_grad():
            network.decoder[0].weight[:] = torch.tensor([[0.0, 0.0], [0.0, 6.0]]).view(2, 2, 1, 1, 1)
            network.decoder[0].bias[:] = torch.tensor([0.0, -3.0])
        return tiny.predictor(network=network, previous_stage="3d_lowres", **options)

    return make


@pytest.mark.parametrize("spacing", [(1.7, 1.8, 1.7), (4.0, 1.0, 1.1)])
def test_a_cascade_gets_its_previous_stage(tiny, scan, tmp_path, cascade, spacing):
    image = sitk.ReadImage(str(scan / "ball_0000.nii.gz"))
    previous = tmp_path / "previous"
    previous.mkdir()
    sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(previous / "ball.nii.gz"))
    predictor = cascade(spacing_of_plans=spacing, grid=SpacingGrid((1.0, 1.0, 1.0)))
    predictor.predict_from_files_sequential(
        str(scan), str(tmp_path / "out"), folder_with_segs_from_prev_stage=str(previous)
    )
    result = sitk.ReadImage(str(tmp_path / "out" / "ball.nii.gz"))
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.3)


def test_a_previous_stage_of_another_format_than_the_output(tiny, scan, tmp_path, cascade):
    image = sitk.Cast(sitk.ReadImage(str(scan / "ball_0000.nii.gz")) > 0, sitk.sitkUInt8)
    sitk.WriteImage(image, str(tmp_path / "ball.nii.gz"))
    predictor = cascade(spacing_of_plans=(2.0, 2.0, 2.0))
    predictor.write_as(".nrrd")
    options = {"folder_with_segs_from_prev_stage": str(tmp_path)}
    predictor.predict_from_files_sequential([[str(scan / "ball_0000.nii.gz")]], [str(tmp_path / "out/ball")], **options)
    assert (tmp_path / "out" / "ball.nrrd").is_file()


@pytest.mark.parametrize("change", ["moved", "flipped", "thin"])
def test_a_previous_stage_that_lies_elsewhere_is_refused(tiny, scan, tmp_path, cascade, change):
    """The network would take its voxels for the scan's."""
    labels = sitk.Cast(sitk.ReadImage(str(scan / "ball_0000.nii.gz")) > 0, sitk.sitkUInt8)
    if change == "moved":
        labels.SetOrigin([x + 50 for x in labels.GetOrigin()])
    else:
        labels = sitk.Flip(labels, (True, False, False)) if change == "flipped" else sitk.Expand(labels, (1, 1, 4))
    sitk.WriteImage(labels, str(tmp_path / "ball.nii.gz"))
    message = r"ball\.nii\.gz must have the voxels of .*ball_0000\.nii\.gz .*previous stage's configuration and --grid"
    with pytest.raises(UnusableImageError, match=message):
        cascade(spacing_of_plans=(2.0, 2.0, 2.0)).predict_from_files_sequential(
            str(scan), str(tmp_path / "out"), folder_with_segs_from_prev_stage=str(tmp_path)
        )


def test_previous_stages_that_are_missing_or_not_wanted(tiny, scan, tmp_path, cascade):
    out = str(tmp_path / "out")
    predictor = cascade(spacing_of_plans=(2.0, 2.0, 2.0))
    with pytest.raises(FileNotFoundError, match=r"there is no .*ball.nii.gz"):
        predictor.predict_from_files_sequential(str(scan), out, folder_with_segs_from_prev_stage=str(tmp_path))
    with pytest.raises(ValueError, match=r"is a cascade.* -c 3d_lowres --grid native .*-prev_stage_predictions"):
        predictor._manage_input_and_output_lists(str(scan), out)
    with pytest.raises(ValueError, match="is for cascades"):
        tiny.predictor().predict_from_files_sequential(str(scan), out, folder_with_segs_from_prev_stage=str(scan))


def test_a_reference_with_thick_slices_is_what_native_is(tiny, scan, tmp_path):
    """The probabilities are averaged over its slices: up to the profile's shape the input's own grid."""
    grids = [NativeGrid(), ReferenceGrid(scan / "ball_0000.nii.gz")]
    tiny.predictor(grid=grids).predict_from_files_sequential(str(scan), str(tmp_path / "out"), save_probabilities=True)
    native, reference = (np.load(tmp_path / "out" / f"ball_{grid.name}.npz")["probabilities"] for grid in grids)
    assert native.shape == reference.shape
    assert np.abs(native - reference)[:, 1:-1].mean() < 0.02
