"""Images of every kind and orientation through one loaded model, which leaves nothing behind."""

import itertools
import json
import multiprocessing
import os
import weakref
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from random_model import FACTOR, scan, write_random_model, zipped
from scipy.ndimage import maximum_filter, minimum_filter

from rehrseg_nnunet import Model, Prediction, Wanted, load_model, predict
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.image_kinds import to_nifti, to_volume

READERS = ["SimpleITKIO", "NibabelIOWithReorient"]
TURNS = [(order, signs) for order in ((0, 1, 2), (1, 0, 2)) for signs in itertools.product((1, -1), repeat=3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One model for each reader, loaded once."""
    made = {}
    for reader in READERS:
        folder = write_random_model(tmp_path_factory.mktemp(reader), reader=reader)
        made[reader] = load_model(folder, device="cpu", mirroring=False)
    return made


@pytest.fixture
def model(models):
    return models["SimpleITKIO"]


@pytest.fixture
def file(tmp_path):
    sitk.WriteImage(scan(), str(tmp_path / "my scan.nii.gz"))
    return tmp_path / "my scan.nii.gz"


def values(image):
    if isinstance(image, sitk.Image):
        return sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return image[0] if isinstance(image, tuple) else np.asanyarray(image.dataobj)


def turned(image, order, signs):
    """A nibabel image with permuted and flipped array axes, at the same place."""
    transform = np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)], dtype=float)
    return image.as_reoriented(transform)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_all_kinds_give_the_same_in_every_orientation(models, tmp_path, reader, order, signs):
    image = turned(to_nifti(to_volume(scan())), order, signs)
    nibabel.save(image, tmp_path / "a.nii")
    expected = predict(models[reader], tmp_path / "a.nii")
    assert len(np.unique(values(expected))) == 3
    array = (np.asanyarray(image.dataobj), image.affine)
    for kind in (image, sitk.ReadImage(str(tmp_path / "a.nii")), array):
        result = predict(models[reader], kind)
        assert type(result) is type(kind)
        np.testing.assert_array_equal(values(result), values(expected))
        np.testing.assert_allclose(to_volume(result).affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("order", "signs"), TURNS[::3])
def test_the_native_grid_is_the_images_own(models, reader, order, signs):
    image = turned(to_nifti(to_volume(scan())), order, signs)
    result = predict(models[reader], image, grid="native")
    assert result.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)


def test_thin_slices_cover_the_thick_ones(model):
    result = predict(model, scan())
    assert result.GetSize() == (18, 20, 5 * FACTOR)
    np.testing.assert_allclose(result.GetSpacing(), (1, 1, 1), atol=1e-6)
    first = [scan().TransformContinuousIndexToPhysicalPoint((0, 0, index)) for index in (-0.375, 4.375)]
    last = [result.TransformIndexToPhysicalPoint((0, 0, index)) for index in (0, 19)]
    np.testing.assert_allclose(last, first, atol=1e-6)


@pytest.mark.parametrize("name", ["seg.nii.gz", "new/seg.nrrd", "seg.mha"])
def test_a_file_in_a_file_out(model, file, tmp_path, name):
    written = predict(model, file, output=tmp_path / name)
    assert written == tmp_path / name
    expected = predict(model, sitk.ReadImage(str(file)))
    stored = sitk.ReadImage(str(written))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(stored.GetOrigin(), expected.GetOrigin(), atol=1e-4)
    assert sorted(path.name for path in written.parent.iterdir() if path.is_file()) == sorted(
        {written.name} | ({file.name} if written.parent == file.parent else set())
    )


@pytest.mark.parametrize("kind", [sitk, nibabel, tuple])
def test_probabilities_have_the_segmentations_axes(model, kind):
    image = scan()
    if kind is not sitk:
        nifti = to_nifti(to_volume(image))
        image = nifti if kind is nibabel else (np.asanyarray(nifti.dataobj), nifti.affine)
    result = predict(model, image, probabilities=True)
    assert isinstance(result, Prediction)
    array = sitk.GetArrayFromImage(result.segmentation) if kind is sitk else values(result.segmentation)
    np.testing.assert_array_equal(result.probabilities.argmax(0), array)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(values(predict(model, image)), values(result.segmentation))


@pytest.mark.parametrize("kind", [sitk, nibabel])
def test_surfaces_lie_where_the_labels_end(model, kind):
    """In RAS mm: around every corner of a surface some voxels have the label and some have not."""
    image = scan() if kind is sitk else to_nifti(to_volume(scan()))
    result = predict(model, image, surfaces=True)
    assert result.probabilities is None
    assert result.surfaces.keys() == {"a", "b"}
    volume = to_volume(result.segmentation)
    for label, name in ((1, "a"), (2, "b")):
        inside = np.pad(volume.values == label, 2)
        mixed = maximum_filter(inside, 3) & ~minimum_filter(inside, 3)
        vertices = result.surfaces[name].vertices
        index = (vertices - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
        assert len(index) > 100
        assert mixed[tuple(np.round(index).astype(int).T + 2)].all()


def test_voxels_of_a_size_in_mm(model, file):
    assert predict(model, file, grid="0.5,2,1").shape == (36, 10, 20)


def test_a_grid_from_a_file(model, file, tmp_path):
    reference = scan(size=(9, 10, 7), spacing_mm=(2.0, 2.0, 3.0))
    sitk.WriteImage(reference, str(tmp_path / "t1.nrrd"))
    result = predict(model, file, grid=tmp_path / "t1.nrrd")
    assert result.shape == (9, 10, 7)
    np.testing.assert_allclose(result.affine, to_volume(reference).affine, atol=1e-4)


def test_channels_are_a_list(tmp_path):
    model = load_model(write_random_model(tmp_path, channels=2), device="cpu", mirroring=False)
    first, second = scan(0), scan(1)
    both, swapped = predict(model, [first, second]), predict(model, [second, first])
    assert (values(both) != values(swapped)).any()
    with pytest.raises(ValueError, match="image must be a list of the model's 2 channels, got 1"):
        predict(model, first)
    moved = scan(1)
    moved.SetOrigin((0, 0, 0))
    with pytest.raises(UnusableImageError, match=r"image\[1\] must have the voxels of image\[0\]"):
        predict(model, [first, moved])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "seg.txt"}, ValueError, r"output must end in one of \.nii\.gz"),
        ({"output": "seg.nii.gz", "probabilities": True}, ValueError, "output needs an image that is a path, without"),
        ({"grid": "nothing"}, FileNotFoundError, "^grid must be"),
    ],
)
def test_refuses_options(model, file, options, error, message):
    with pytest.raises(error, match=message):
        predict(model, file, **options)


def test_refuses_images(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image must be an existing file, got .*none\.nii"):
        predict(model, tmp_path / "none.nii")
    with pytest.raises(TypeError, match="a nibabel or SimpleITK image"):
        predict(model, np.zeros((3, 3, 3)))
    with pytest.raises(UnusableImageError, match=r"^image must hold finite values"):
        predict(model, (np.full((9, 9, 9), np.nan), np.diag([1, 1, 4, 1])))
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    with pytest.raises(UnusableImageError, match=r"bad\.nii\.gz must be a whole file"):
        predict(model, tmp_path / "bad.nii.gz")


def open_files():
    return sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_five_calls_leave_no_processes_files_or_threads(model, file, capfd):
    predict(model, file)
    before, threads, children = open_files(), torch.get_num_threads(), multiprocessing.active_children()
    capfd.readouterr()
    results = [values(predict(model, file)) for _ in range(5)]
    assert all((result == results[0]).all() for result in results)
    assert open_files() == before
    assert multiprocessing.active_children() == children
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")


def test_a_model_gives_its_memory_back(tmp_path, file):
    with load_model(zipped_model(tmp_path), device="cpu") as model:
        assert isinstance(model, Model)
        assert model.labels == {"background": 0, "a": 1, "b": 2}
        network = weakref.ref(model.predictor.network)
        predict(model, file)
        assert compute_gaussian.cache_info().currsize == 0  # a tensor on the device
    assert network() is None


def zipped_model(tmp_path):
    write_random_model(tmp_path / "results", folds=(0, 1))
    return zipped(tmp_path / "results", tmp_path / "model.zip")


def test_a_zip_file_is_gone_from_the_disk_once_it_is_loaded(tmp_path, file, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    path = zipped_model(tmp_path)
    model = load_model(path, device="cpu", mirroring=False)
    assert list((tmp_path / "tmp").iterdir()) == []
    both = predict(model, file)
    one = predict(load_model(path, device="cpu", mirroring=False, folds=[1]), file)
    assert (values(both) != values(one)).any()


def test_refuses_a_missing_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device must be available, got cuda without a CUDA GPU; use cpu"):
        load_model(tmp_path, device="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be cuda, cpu or mps, got gpu"),
        ({"hr_from": "x"}, "hr_from must be one of head, lr, mean, or None, got x"),
        ({"folds": []}, "folds must name at least one"),
        ({"folds": ["x"]}, "must be numbers or all, got x"),
    ],
)
def test_refuses_what_no_model_can_do(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(write_random_model(tmp_path), **options)


@pytest.mark.parametrize("folds", [1, "1", [1], ["1"]])
def test_one_fold_may_be_named_without_a_list(tmp_path, folds):
    with load_model(write_random_model(tmp_path, folds=(0, 1)), device="cpu", folds=folds) as model:
        assert len(model.predictor.list_of_parameters) == 1


def test_a_closed_model_says_so(tmp_path, file):
    model = load_model(write_random_model(tmp_path), device="cpu")
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="the model was closed"):
        predict(model, file)


def test_the_scan_is_never_replaced(model, file):
    before = file.read_bytes()
    (file.parent / "link.nii.gz").symlink_to(file)
    for output in (file, file.parent / "link.nii.gz", file.parent / "x" / ".." / file.name):
        (file.parent / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"output must not be .*\.nii\.gz, which is an input"):
            predict(model, file, output=output)
    assert file.read_bytes() == before


def test_an_output_that_leads_into_a_file_is_named(model, file):
    with pytest.raises(OSError, match=r"my scan\.nii\.gz must be a folder or a place for a new one, got a file"):
        predict(model, file, output=file / "seg.nii.gz")


@pytest.mark.parametrize("grid", [1.0, (1, 1), ["hr", "native"], scan()])
def test_a_grid_is_text_sizes_or_a_path(model, file, grid):
    with pytest.raises(TypeError, match=r"grid must be 'hr', .*, got (1\.0|\(1, 1\)|\['hr', 'native'\]|Image)$"):
        predict(model, file, grid=grid)


def test_voxel_sizes_as_numbers(model, file):
    assert predict(model, file, grid=(0.5, 2, 1.0)).shape == (36, 10, 20)
    with pytest.raises(ValueError, match=r"^grid must have one or three voxel sizes"):
        predict(model, file, grid=(0, 1, 1))


def test_what_another_model_left_beside_an_output_goes(model, file, tmp_path):
    for name in ("seg.npz", "seg.pkl", "seg.seg.nrrd", "seg_a.stl", "seg_2.npz"):
        (tmp_path / name).touch()
    predict(model, file, output=tmp_path / "seg.nrrd")
    assert len(list(tmp_path.glob("seg*"))) == 6  # no segmentation was replaced
    assert predict(model, file, output=tmp_path / "seg.NRRD") == tmp_path / "seg.nrrd"
    assert {path.name for path in tmp_path.glob("seg*")} == {"seg.nrrd", "seg_2.npz"}


def test_an_output_replaces_segmentations_only(model, file, tmp_path):
    """A first segmentation may be replaced; a scan, text or other labels never."""
    output = tmp_path / "seg.nrrd"
    for _ in range(2):
        predict(model, file, output=output)
    sitk.WriteImage(scan(1), str(output))
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"^output must not replace .*, but \S+seg\.nrrd holds no labels; are input"):
        predict(model, file, output=output)
    assert output.read_bytes() == before
    sitk.WriteImage(sitk.Cast(scan() > 0, sitk.sitkUInt8) * 7, str(output))
    with pytest.raises(ValueError, match=r"seg\.nrrd holds 7, which are no labels of this model"):
        predict(model, file, output=output)


def test_messages_name_arguments(tmp_path):
    folder = write_random_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^fold 3 .*; trained folds: 0; choose with folds, or .* with check"):
        load_model(folder, folds=3, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"^path must be an existing folder or zip file, got nothing$"):
        load_model("nothing", device="cpu")
    with pytest.raises(ValueError, match=r"^wanted\.trainer must be that of the model"):
        load_model(folder, wanted=Wanted(trainer="Other"), device="cpu")
    with pytest.raises(TypeError, match=r"^path must be the path of a model's folder or zip file, got 504$"):
        load_model(504)


def test_a_model_and_an_image_in_each_others_place(model):
    with pytest.raises(TypeError, match=r"^model must be what load_model returns, got Image: predict\(model, image\)$"):
        predict(scan(), model)


def test_refuses_a_cascade(tmp_path):
    folder = write_random_model(tmp_path, channels=3)  # the image's and two labels'
    plans = json.loads((folder / "plans.json").read_text())
    changes = {"previous_stage": "3d_lowres", "normalization_schemes": ["ZScoreNormalization"]}
    plans["configurations"]["3d_fullres"].update(changes)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**dataset, "channel_names": {"0": "MRI"}}))
    with pytest.raises(NotImplementedError, match=r"^path must be a model without previous stage, got the cascade"):
        load_model(folder, device="cpu")


def test_a_folder_as_grid_needs_names(model, file):
    with pytest.raises(FileNotFoundError, match="needs the name of a case, got none; give one file as grid"):
        predict(model, scan(), grid=file.parent)
