"""Surfaces and 3D Slicer segmentations come from the logits that the segmentation comes from."""

import pickle
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
import trimesh

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError
from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid
from rehrseg_nnunet.prediction.writers import SegmentationWriter, SurfaceWriter
from rehrseg_nnunet.surfaces.stored import StoredCase, read_logits
from rehrseg_nnunet.surfaces.structures import structures_of
from rehrseg_nnunet.surfaces.write import SurfaceOptions, write_surfaces

STL = SurfaceOptions(("stl",))
WRITERS = (SurfaceWriter(STL), SegmentationWriter())


@pytest.fixture
def scan(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    image = tiny.blank((24, 22, 7), (1.1, 1.0, 4.0), rotation=tiny.oblique())
    sitk.WriteImage(tiny.ball(image), str(folder / "ball_0000.nii.gz"))
    return folder


def predict(tiny, scan, output, **options):
    predictor = tiny.predictor(writers=WRITERS, **options)
    predictor.predict_from_files_sequential(str(scan), str(output), save_probabilities=True)
    return predictor


def centroid(file):
    """Of what is not background, mm in LPS as SimpleITK has it."""
    image = sitk.ReadImage(str(file))
    index = np.argwhere(sitk.GetArrayFromImage(image) > 0).mean(0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def test_surfaces_and_segmentations_lie_where_the_prediction_does_on_every_grid(tiny, scan, tmp_path):
    out = tmp_path / "out"
    predict(tiny, scan, out, grid=(HRGrid(), NativeGrid()))
    for grid in ("hr", "native"):
        mesh = trimesh.load(out / f"ball_{grid}_ball.stl")
        assert mesh.is_watertight
        place = centroid(out / f"ball_{grid}.nii.gz")
        np.testing.assert_allclose(mesh.center_mass, place, atol=0.3)
        np.testing.assert_allclose(centroid(out / f"ball_{grid}.seg.nrrd"), place, atol=1e-3)
        assert slicerio.segment_names(slicerio.read_segmentation(str(out / f"ball_{grid}.seg.nrrd"))) == ["ball"]
    image = sitk.ReadImage(str(out / "ball_hr.nii.gz"))
    voxels = sitk.GetArrayFromImage(image).sum() * np.prod(image.GetSpacing())
    assert trimesh.load(out / "ball_hr_ball.stl").volume == pytest.approx(voxels, rel=0.05)  # a ball of 5 voxels


def test_the_surface_is_that_of_the_saved_probabilities(tiny, scan, tmp_path):
    out = tmp_path / "out"
    predictor = predict(tiny, scan, out)
    structures = structures_of(predictor.dataset_json)
    logits, grid = read_logits(StoredCase("ball", out / "ball.npz"), structures)
    (stored,) = write_surfaces(logits, grid, structures, tmp_path / "stored", STL)
    written = trimesh.load(out / "ball_ball.stl")
    assert stored.volume_mm3 == pytest.approx(written.volume, rel=1e-3)
    np.testing.assert_allclose(trimesh.load(stored.files[0]).center_mass, written.center_mass, atol=0.01)


def test_regions(tiny, scan, tmp_path):
    predict(tiny, scan, tmp_path / "out", regions=True)
    assert trimesh.load(tmp_path / "out" / "ball_part.stl").is_watertight


def test_a_full_disk_leaves_nothing_of_the_case(tiny, scan, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicerio.write_segmentation", full)
    with pytest.raises(UnwrittenFileError, match=r"out/ball\.seg\.nrrd could not be written: No space left"):
        predict(tiny, scan, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir() if file.name.startswith((".", "ball"))] == []


def test_writers_travel_to_workers():
    assert pickle.loads(pickle.dumps(WRITERS)) == WRITERS


@pytest.mark.parametrize(
    ("options", "module", "message"),
    [
        (["--surfaces", "stl"], "trimesh", "pip install 'rehrseg-nnunet[surfaces]'"),
        (["--seg_nrrd"], "slicerio", "pip install 'rehrseg-nnunet[slicer]'"),
        (["--ras"], None, "--ras is about surfaces; add --surfaces stl"),
    ],
)
def test_the_command_says_so_before_it_looks_for_the_model(tmp_path, monkeypatch, capsys, options, module, message):
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    status = main(["predict", "-i", str(tmp_path), "-o", str(tmp_path / "o"), "-d", "1", "-c", "3d_fullres", *options])
    assert (status, (tmp_path / "o").exists()) == (1, False)
    assert message in capsys.readouterr().err


def test_surfaces_of_several_cases_in_one_file_are_refused():
    dataset_json = {"labels": {"background": 0, "left_bone": 1, "bone": 2}}
    writer = SurfaceWriter(SurfaceOptions(("stl",)))
    writer.check(["knee_hr", "knee_native"], dataset_json)
    with pytest.raises(ValueError, match="knee and knee_left would both write knee_left_bone"):
        writer.check(["knee", "knee_left"], dataset_json)
