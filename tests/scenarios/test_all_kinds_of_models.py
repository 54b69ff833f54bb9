"""nnU-Net's other kinds of models, trained by its own commands: one prediction each, on several grids.

On the grid that a model was planned for the result is `nnUNetv2_predict`'s, voxel for voxel.
"""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.cases.phantom import write_phantom_dataset

pytestmark = pytest.mark.slow

PHANTOM, MANY = 1, 2
SHAPE = (16, 16, 24)  # z, y, x
BLOCK = 6  # voxels; labels of MANY count these blocks
LOWRES, CASCADE = "3d_lowres", "3d_cascade_fullres"
CASE = "phantom_000"
KINDS = {
    "cascade": (PHANTOM, "nnUNetPlans", CASCADE),
    "2d": (PHANTOM, "nnUNetPlans", "2d"),
    "residual encoder, isotropic, 36 labels": (MANY, "nnUNetResEncUNetMPlans", "3d_fullres"),
    "regions": (PHANTOM, "regions", "3d_fullres"),
}


def number_blocks(folder):
    """Labels 1 to 36 in place of two: where the phantom has any, the number of the block."""
    for file in (folder / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        values = sitk.GetArrayFromImage(image)
        z, y, x = (index // BLOCK for index in np.indices(values.shape))
        numbered = sitk.GetImageFromArray(np.where(values > 0, 1 + (z * 3 + y) * 4 + x, 0).astype(np.uint8))
        numbered.CopyInformation(image)
        sitk.WriteImage(numbered, str(file))
    describe(folder, labels={"background": 0, **{f"block {value}": value for value in range(1, 37)}})


def describe(folder, **changes):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))


def shrink(file, name):
    """Networks of four features, and a cascade."""
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            sizes = configuration["architecture"]["arch_kwargs"]
            for key, size in {"features_per_stage": 4, "n_conv_per_stage": 1, "n_blocks_per_stage": 1}.items():
                if key in sizes:
                    sizes[key] = [size] * len(sizes[key])
            sizes["n_conv_per_stage_decoder"] = [1] * len(sizes["n_conv_per_stage_decoder"])
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        LOWRES: {
            "inherits_from": "3d_fullres",
            "data_identifier": f"{name}_{LOWRES}",
            "spacing": [size * 1.5 for size in fullres["spacing"]],
            "next_stage": CASCADE,
        },
        CASCADE: {"inherits_from": "3d_fullres", "previous_stage": LOWRES},
    }
    plans["plans_name"] = name
    file.with_name(f"{name}.json").write_text(json.dumps(plans))


@pytest.fixture(scope="module")
def trained(nnunet):
    """All kinds, trained for a few steps, and the first case's scan."""
    for number, name in ((PHANTOM, "Phantom"), (MANY, "Many")):
        write_phantom_dataset(nnunet.raw / f"Dataset{number:03d}_{name}", cases=3, shape=SHAPE, seed=number)
    number_blocks(nnunet.raw / "Dataset002_Many")
    planners = {"nnUNetPlans": "ExperimentPlanner", "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM"}
    wanted = {(number, plans) for number, plans, _ in KINDS.values()} - {(PHANTOM, "regions")}
    for number, plans in sorted(wanted):
        nnunet.plan(number, planner=planners[plans])
        shrink(nnunet.plans(number, plans), plans)
    nnunet.preprocess(PHANTOM, configurations=("2d", "3d_fullres", LOWRES))
    nnunet.preprocess(MANY, plans="nnUNetResEncUNetMPlans")
    for configuration in (LOWRES, CASCADE, "2d"):
        nnunet.train("nnUNetTrainer", PHANTOM, plans="nnUNetPlans", configuration=configuration, fold="all")
    nnunet.train("nnUNetTrainer", MANY, plans="nnUNetResEncUNetMPlans", fold="all")
    train_regions(nnunet)
    nnunet.scan = nnunet.raw / "Dataset001_Phantom" / "imagesTr" / f"{CASE}_0000.nii.gz"
    return nnunet


def train_regions(nnunet):
    """The same data with labels that overlap."""
    shrink(nnunet.plans(PHANTOM, "nnUNetPlans"), "regions")
    folder = nnunet.preprocessed / "Dataset001_Phantom"
    labels, order = {"background": 0, "whole": [1, 2], "core": 2}, [1, 2]
    former = (folder / "dataset.json").read_text()
    describe(folder, labels=labels, regions_class_order=order)
    try:
        nnunet.train("nnUNetTrainer", PHANTOM, plans="regions", fold="all")
    finally:
        (folder / "dataset.json").write_text(former)


def model_of(nnunet, number, plans, configuration):
    return nnunet.fold("nnUNetTrainer", number, plans=plans, configuration=configuration, fold="all").parent


def predict(nnunet, model, target, *options, scan=None):
    here = ("-device", "cpu", "--disable_progress_bar")
    nnunet.rehrseg("predict", "-m", model, "-i", scan or nnunet.scan, "-o", target, *here, *options)


def voxels(file):
    return np.asanyarray(nibabel.load(file).dataobj)


@pytest.fixture(scope="module")
def lowres(trained, tmp_path_factory):
    """The previous stage on the scan's own grid."""
    folder = tmp_path_factory.mktemp("lowres")
    predict(trained, model_of(trained, PHANTOM, "nnUNetPlans", LOWRES), folder / f"{CASE}.nii.gz", "--grid", "native")
    return folder


@pytest.fixture(scope="module")
def shifted(trained, tmp_path_factory):
    """A grid of the scan's voxels without the first two sagittal planes."""
    file = tmp_path_factory.mktemp("grid") / "shifted.nii.gz"
    nibabel.save(nibabel.load(trained.scan).slicer[2:], file)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_several_grids_of_every_kind_of_model(trained, lowres, shifted, tmp_path, kind):
    number, plans, configuration = KINDS[kind]
    options = ("-prev_stage_predictions", lowres) if configuration == CASCADE else ()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / trained.scan.name).write_bytes(trained.scan.read_bytes())
    setting = {"trainer": "nnUNetTrainer", "plans": plans, "configuration": configuration, "folds": ("all",)}
    trained.predict(tmp_path / "in", tmp_path / "stock", number, *options, **setting)
    stock = voxels(tmp_path / "stock" / f"{CASE}.nii.gz")
    assert len(np.unique(stock)) > 1  # a network of a few steps says something
    source = model_of(trained, number, plans, configuration)
    target = tmp_path / f"{CASE}.nii.gz"
    predict(trained, source, target, "--grid", "native", shifted, "0.5", *options)
    np.testing.assert_array_equal(voxels(tmp_path / f"{CASE}_native.nii.gz"), stock)
    np.testing.assert_array_equal(voxels(tmp_path / f"{CASE}_shifted.nii.gz"), stock[2:])
    fine = voxels(tmp_path / f"{CASE}_0.5mm.nii.gz")
    assert fine.shape == tuple(2 * size for size in stock.shape)
    assert np.mean(fine[::2, ::2, ::2] == stock) > 0.5  # its voxels are a quarter away


def test_a_zip_file_of_another_kind(trained, tmp_path):
    """2d: its slices are predicted one by one, on the scan's own grid unless another is asked for."""
    file = tmp_path / "model.zip"
    trained.command("nnUNetv2_export_model_to_zip", "-d", PHANTOM, "-o", file, "-c", "2d", "-f", "all")
    predict(trained, file, tmp_path / "zip.nii.gz")
    predict(trained, model_of(trained, PHANTOM, "nnUNetPlans", "2d"), tmp_path / "folder.nii.gz")
    np.testing.assert_array_equal(voxels(tmp_path / "zip.nii.gz"), voxels(tmp_path / "folder.nii.gz"))
