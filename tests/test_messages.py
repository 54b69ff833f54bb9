"""Every message of docs/reference/messages.md is what the user reads in its situation."""

import json
import pickle
import re
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from guided_unets import keeper_for
from keeper_runs import planned, plans_of, training, write_keeper
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from random_model import scan, write_random_model
from workspace import environment

from rehrseg_nnunet.cases.case_checks import check_cases
from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.config.blocks import learning_rate_from_trained
from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.config.guidance import load_config as load_guidance
from rehrseg_nnunet.guided.adversary import OptimizerPair
from rehrseg_nnunet.guided.frozen import FrozenTeacher, open_teacher
from rehrseg_nnunet.guided.frozen_keeper import open_keeper, resolve
from rehrseg_nnunet.guided.guided_network import add_guidance
from rehrseg_nnunet.guided.keeper_cases import check_leak, check_teachers_leak, orientation_doubts
from rehrseg_nnunet.guided.keeper_run import KeeperRun, find_keeper
from rehrseg_nnunet.guided.keeper_view import doubts_of, view_of
from rehrseg_nnunet.guided.networks import build_keeper, build_teacher, check_adversary, planned_shape
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.guided.resolved_keeper import check_other_folds, check_own_plans
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.prediction.image_checks import check_image
from rehrseg_nnunet.self_sr.frozen import check_version
from rehrseg_nnunet.trainers.rehrseg_guidance_teacher_trainer import GuidanceTeacherTrainer
from rehrseg_nnunet.trainers.rehrseg_guided_trainer import GuidedTrainer
from rehrseg_nnunet.trainers.rehrseg_knowledge_keeper_trainer import KnowledgeKeeperTrainer

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "messages.md"
ROW = re.compile(r"^\| (.+) \| (error|warning) \| `(.+)` \|$", re.MULTILINE)
MESSAGES = {situation: (kind, message) for situation, kind, message in ROW.findall(DOCUMENT.read_text())}
SHAPE = (8, 6, 5)
DATASET = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nrrd"}


def pattern(message):
    return ".*".join(re.escape(part) for part in message.split("…"))


class Dataset:
    """A raw dataset of two cases with two channels, predictions of it, and what commands say of them."""

    def __init__(self, folder, capsys, caplog):
        self.folder, self.raw, self.capsys, self.caplog = folder, folder / "raw" / "Dataset001_A", capsys, caplog
        values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        for case in "ab":
            for channel in range(2):
                self.write(f"imagesTr/{case}_{channel:04d}.nrrd", values)
            for part in ("labelsTr", "predicted"):
                self.write(f"{part}/{case}.nrrd", (values > 0).astype(np.uint8))
        self.describe()

    def write(self, name, values, *, origin=(0.0, 0.0, 0.0)):
        file = self.raw / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = values if isinstance(values, sitk.Image) else sitk.GetImageFromArray(values)
        if image.GetDimension() == 3:
            image.SetOrigin(origin)
        sitk.WriteImage(image, str(file))
        return file

    def describe(self, **changes):
        (self.raw / "dataset.json").write_text(json.dumps({**DATASET, **changes}))

    def says(self, *command):
        self.capsys.readouterr()
        status = main([str(part) for part in command])
        errors = [line for line in self.capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(errors) == status
        return {"error": "".join(errors), "warning": self.caplog.text.replace("\n", " ")}

    def simulate(self, factor=2):
        said = self.says("simulate", "-d", 1, "-o", 2, "--factor", factor)
        assert bool(said["error"]) != (self.raw.parent / f"Dataset002_A_r{factor}z").is_dir()
        return said

    def evaluate(self):
        files = ["-ref", self.raw / "labelsTr", "-pred", self.raw / "predicted", "-djfile", self.raw / "dataset.json"]
        return self.says("evaluate", *files)


@pytest.fixture
def dataset(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    return Dataset(tmp_path, capsys, caplog)


def provoke(situation):
    """Register what brings the situation about; returns what is said, by kind."""

    def register(function):
        PROVOKED[situation] = function
        return function

    return register


PROVOKED = {}


@provoke("A file ends early or is damaged")
def damaged(dataset):
    file = dataset.raw / "imagesTr" / "b_0001.nrrd"
    file.write_bytes(file.read_bytes()[:-9])
    return dataset.simulate()


@provoke("The first file of a folder is no image at all")
def no_image(dataset):
    (dataset.raw / "labelsTr" / "a.nrrd").write_bytes(b"no image")
    return dataset.evaluate()


@provoke("A 4D file, or several values per voxel")
def several_layers(dataset):
    dataset.write("predicted/b.nrrd", np.zeros((2, *SHAPE), np.uint8))
    return dataset.evaluate()


@provoke("NaN or infinite values")
def not_finite(dataset):
    dataset.write("imagesTr/b_0000.nrrd", np.full(SHAPE, np.nan, np.float32))
    return dataset.simulate()


def write_nifti(dataset, header):
    """A NIfTI reference, whose header is changed in place, with the prediction of case `b`."""
    for part in ("labelsTr", "predicted"):
        for case in "ab":
            (dataset.raw / part / f"{case}.nrrd").unlink()
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    header(image.header)
    nibabel.save(image, dataset.raw / "predicted" / "b.nii")
    dataset.write("labelsTr/b.nii", np.zeros(SHAPE, np.uint8))
    dataset.describe(file_ending=".nii", overwrite_image_reader_writer="NibabelIO")


@provoke("Complex values in a NIfTI file")
def complex_values(dataset):
    write_nifti(dataset, lambda header: header.set_data_dtype(np.complex64))
    return dataset.evaluate()


@provoke("A header with a spacing of 0 or a position that is no number")
def no_geometry(dataset):
    write_nifti(dataset, lambda header: None)
    file = dataset.raw / "predicted" / "b.nii"
    content = bytearray(file.read_bytes())
    content[280:328] = bytes(48)  # the sform
    file.write_bytes(content)
    return dataset.evaluate()


@provoke("NaN in a NIfTI image that SimpleITK reads")
def hidden_nan(dataset):
    for file in list(dataset.raw.glob("*Tr/*.nrrd")):
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        if file.name.startswith("b_"):
            values[0, 0, 0] = np.nan
        dataset.write(f"{file.parent.name}/{file.stem}.nii.gz", values)
        file.unlink()
    dataset.describe(file_ending=".nii.gz")
    return dataset.simulate()


@provoke("A NIfTI header says twice where the image lies")
def two_positions(dataset):
    said = hidden_nan(dataset)  # the dataset as NIfTI files
    assert not said["error"]
    file = dataset.raw / "imagesTr" / "a_0000.nii.gz"
    image, moved = nibabel.load(file), np.diag([1.0, 1, 1, 1])
    moved[2, 3] = 9
    image.set_qform(moved, code=1)
    image.set_sform(image.affine, code=1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), file)
    shutil.rmtree(dataset.raw.parent / "Dataset002_A_r2z")
    return dataset.simulate()


@provoke("The channels of a case lie on different grids")
def displaced_channel(dataset):
    dataset.write("imagesTr/b_0001.nrrd", np.zeros(SHAPE, np.float32), origin=(0.2, 0, 0))
    return dataset.simulate()


@provoke("A file does not fit on the disk, or under a limit per file")
def full_disk(dataset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("SimpleITK.WriteImage", lambda *_: (_ for _ in ()).throw(RuntimeError("no space")))
        return dataset.simulate()


@provoke("All files have another ending than `file_ending`")
def other_ending(dataset):
    dataset.describe(file_ending=".nii.gz")
    return dataset.simulate()


@provoke("Some files have another ending")
def some_other_endings(dataset):
    dataset.write("imagesTr/c_0000.mha", np.zeros(SHAPE, np.float32))
    return dataset.simulate()


@provoke("macOS has left `._` files")
def macos(dataset):
    (dataset.raw / "predicted" / "._a.nrrd").touch()
    return dataset.evaluate()


@provoke("A file has no channel in its name")
def no_channel(dataset):
    dataset.write("imagesTr/c.nrrd", np.zeros(SHAPE, np.float32))
    return dataset.simulate()


@provoke("A case lacks a channel or has one too many")
def missing_channel(dataset):
    (dataset.raw / "imagesTr" / "b_0000.nrrd").unlink()
    return dataset.simulate()


@provoke("dataset.json is missing")
def no_dataset_json(dataset):
    (dataset.raw / "dataset.json").unlink()
    return dataset.evaluate()


@provoke("It is broken")
def broken_json(dataset):
    (dataset.raw / "dataset.json").write_text("{,}")
    return dataset.evaluate()


@provoke("It begins with a byte order mark")
def byte_order_mark(dataset):
    (dataset.raw / "dataset.json").write_text("\ufeff{}", encoding="utf-8")
    return dataset.simulate()


@provoke("It is of nnU-Net 1 or the Decathlon")
def old_nnunet(dataset):
    dataset.describe(labels={"0": "background", "1": "a"})
    return dataset.evaluate()


@provoke("A key is missing")
def missing_key(dataset):
    (dataset.raw / "dataset.json").write_text(json.dumps({"file_ending": ".nrrd", "labels": DATASET["labels"]}))
    return dataset.simulate()


@provoke("A key is there twice, with different values")
def twice(dataset):
    file = dataset.raw / "dataset.json"
    file.write_text(file.read_text().replace('"a": 1', '"a": 2, "a": 1'))
    return dataset.evaluate()


@provoke("A value is of another kind")
def another_kind(dataset):
    dataset.describe(file_ending="nrrd")
    return dataset.simulate()


@provoke("nnU-Net does not accept the labels (no background, regions without order, ...)")
def refused_labels(dataset):
    dataset.describe(labels={"a": 1})
    return dataset.simulate()


@provoke("Labels that are too large")
def large_labels(dataset):
    dataset.write("predicted/b.nrrd", np.full(SHAPE, 2**31, np.uint32))
    return dataset.evaluate()


@provoke("Labels a hair off (1.0000153, from rescaled headers)")
def hair_off(dataset):
    dataset.write("predicted/b.nrrd", np.full(SHAPE, 1.0000153, np.float32))
    return dataset.evaluate()


@provoke("Labels that are no integers")
def no_integers(dataset):
    dataset.write("predicted/b.nrrd", np.full(SHAPE, 0.5, np.float32))
    return dataset.evaluate()


@provoke("`rehrseg evaluate`, benchmarks: a label that dataset.json does not have")
def unknown_in_evaluate(dataset):
    dataset.write("predicted/b.nrrd", np.full(SHAPE, 3, np.uint8))
    return dataset.evaluate()


@provoke("`rehrseg simulate`: a label that dataset.json does not have")
def unknown_in_simulate(dataset):
    dataset.write("labelsTr/b.nrrd", np.full(SHAPE, 3, np.uint8))
    return dataset.simulate()


def check_training_case(dataset, labels):
    """The check before training of a preprocessed case `b` with one channel."""
    image = np.zeros((1, *SHAPE), np.float32)
    sizes = {"chunks": (1, *SHAPE), "blocks": (1, *SHAPE)}
    nnUNetDatasetBlosc2.save_case(image, labels[None].astype(np.int8), {}, str(dataset.folder / "b"), **sizes)
    manager = LabelManager(DATASET["labels"], None)
    with pytest.raises(ValueError, match="cases must have") as error:
        check_cases(nnUNetDatasetBlosc2(str(dataset.folder)), ["b"], label_manager=manager, raw_folder=dataset.raw)
    return {"error": str(error.value)}


@provoke("Training: a case has a label that dataset.json does not have")
def unknown_in_training(dataset):
    return check_training_case(dataset, np.full(SHAPE, 3))


@provoke("Training: a case was preprocessed with a channel missing")
def channel_missing_in_training(dataset):
    (dataset.raw / "imagesTr" / "b_0000.nrrd").unlink()
    return check_training_case(dataset, np.zeros(SHAPE))


@provoke("An image has no label")
def no_label(dataset):
    (dataset.raw / "labelsTr" / "b.nrrd").unlink()
    return dataset.simulate()


@provoke("A label has no image")
def no_image_of_label(dataset):
    dataset.write("labelsTr/c.nrrd", np.zeros(SHAPE, np.uint8))
    return dataset.simulate()


@provoke("A label lies on another grid than its image")
def displaced_label(dataset):
    dataset.write("labelsTr/b.nrrd", np.zeros((6, *SHAPE[1:]), np.uint8))
    return dataset.simulate()


@provoke("Formats without spacing (TIFF, PNG)")
def without_spacing(dataset):
    dataset.describe(file_ending=".tif")
    return dataset.simulate()


@provoke("A case has fewer slices than the factor")
def few_slices(dataset):
    return dataset.simulate(factor=9)


@provoke("numTraining is not the number of cases")
def wrong_number(dataset):
    dataset.describe(numTraining=5)
    return dataset.simulate()


def check_scan(dataset, spacing_mm):
    """The check before prediction with a model of 4 x 1 x 1 mm."""
    model = SimpleNamespace(normalization_schemes=["ZScoreNormalization"], spacing=[4.0, 1.0, 1.0])
    plans = SimpleNamespace(transpose_forward=[0, 1, 2])
    try:
        check_image(np.ones((1, *SHAPE), np.float32), spacing_mm, "scan.nii.gz", plans, model, hr_outputs=8)
    except ValueError as error:
        return {"error": str(error)}
    return {"warning": dataset.caplog.text}


@provoke("The spacing is much too small (metres)")
def metres(dataset):
    return check_scan(dataset, (0.004, 0.001, 0.001))


@provoke("The spacing is much too large (micrometres)")
def micrometres(dataset):
    return check_scan(dataset, (40000.0, 10000.0, 10000.0))


@provoke("The slices are not thick where the model's are")
def thin_slices(dataset):
    return check_scan(dataset, (1.0, 1.0, 4.0))


@provoke("Stage 1 was trained by an earlier version")
def old_stage_1(dataset):
    checkpoint = dataset.folder / "checkpoint_final.pth"
    torch.save({"network_weights": {"head.fuse.weight": torch.zeros(1)}}, checkpoint)
    try:
        check_version(checkpoint, command="nnUNetv2_train Dataset001_A 3d_fullres 0 -tr SelfSRTrainer")
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


@provoke("A prediction lies on another grid than its reference")
def displaced_prediction(dataset):
    dataset.write("predicted/b.nrrd", np.zeros(SHAPE, np.uint8), origin=(0, 0, 0.5))
    return dataset.evaluate()


@provoke("A reference has no prediction")
def no_prediction(dataset):
    (dataset.raw / "predicted" / "b.nrrd").unlink()
    return dataset.evaluate()


def surfaces(dataset):
    return dataset.says("surfaces", "-i", dataset.raw / "predicted", "-o", dataset.folder / "surfaces")


def save_probabilities(dataset, heads=2):
    """A folder of predictions with probabilities of case `a` alone."""
    (dataset.raw / "predicted" / "dataset.json").write_text((dataset.raw / "dataset.json").read_text())
    file = dataset.raw / "predicted" / "a.npz"
    np.savez(file, probabilities=np.full((heads, *SHAPE), 1 / heads, np.float32))
    return file


@provoke("A label is empty")
def empty_label(dataset):
    dataset.write("predicted/b.nrrd", np.zeros(SHAPE, np.uint8))
    save_probabilities(dataset).unlink()
    return surfaces(dataset)


@provoke("There are labels and no probabilities")
def labels_only(dataset):
    return surfaces(dataset)


@provoke("The pkl file of an npz file is missing")
def no_pkl(dataset):
    save_probabilities(dataset)
    return surfaces(dataset)


@provoke("An npz file is damaged")
def damaged_npz(dataset):
    file = save_probabilities(dataset)
    file.write_bytes(file.read_bytes()[:-9])
    return surfaces(dataset)


@provoke("An npz file is of another dataset")
def npz_of_another_dataset(dataset):
    save_probabilities(dataset, heads=3)
    return surfaces(dataset)


@provoke("An npz file comes without dataset.json")
def npz_without_dataset_json(dataset):
    save_probabilities(dataset).with_name("dataset.json").unlink()
    return surfaces(dataset)


@provoke("Surfaces of two cases would share a file: label `left_bone` of `knee`, `bone` of `knee_left`")
def shared_surfaces(dataset):
    dataset.describe(labels={"background": 0, "left_bone": 1, "bone": 2})
    save_probabilities(dataset).unlink()
    (dataset.raw / "predicted" / "a.nrrd").rename(dataset.raw / "predicted" / "b_left.nrrd")
    return surfaces(dataset)


@provoke("A folder has neither")
def no_cases(dataset):
    for case in "ab":
        (dataset.raw / "predicted" / f"{case}.nrrd").unlink()
    return surfaces(dataset)


@provoke("The extra is not installed")
def no_extra(dataset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "slicerio", None)
        return dataset.says("viewers", "-i", dataset.raw / "predicted")


class Prediction:
    """A model of one channel and a scan, and what `rehrseg predict` says."""

    def __init__(self, dataset):
        self.says, self.folder = dataset.says, dataset.folder / "predict"
        self.model = write_random_model(self.folder / "models")
        sitk.WriteImage(scan(), str(self.folder / "scan.nii.gz"))

    def __call__(self, *options, model=None, source=("scan.nii.gz",), target="seg.nii.gz"):
        files = [self.folder / name for name in source]
        chosen = ["-m", self.model if model is None else model]
        here = ["-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar", *options]
        return self.says("predict", *chosen, "-i", *files, "-o", self.folder / target, *here)

    def csv(self, *lines, options=()):
        (self.folder / "cases.csv").write_text("\n".join(lines))
        return self(*options, source=("cases.csv",), target="out")


@provoke("Neither `-m` nor `-d`")
def no_model_named(dataset):
    return dataset.says("predict", "-i", dataset.raw, "-o", dataset.folder / "out")


@provoke("Both `-m` and `-d`")
def two_models_named(dataset):
    return dataset.says("predict", "-m", "a", "-d", 1, "-i", dataset.raw, "-o", dataset.folder / "out")


@provoke("`-m` has no model in it, or a zip file has none")
def no_model(dataset):
    return Prediction(dataset)(model=dataset.raw)


@provoke("`-m` holds several models")
def several_models(dataset):
    predict = Prediction(dataset)
    write_random_model(predict.folder / "models", 2)
    return predict(model=predict.folder / "models")


@provoke("A zip file is damaged, or is none")
def damaged_zip(dataset):
    return Prediction(dataset)(model=dataset.raw / "dataset.json")


@provoke("A fold has no checkpoint")
def no_checkpoint(dataset):
    return Prediction(dataset)("-f", 3)


def change_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@provoke(
    "plans.json, dataset.json and checkpoints of a model do not fit together, or its trainer is not there",
)
def other_labels(dataset):
    predict = Prediction(dataset)
    change_json(predict.model / "dataset.json", labels={"background": 0, "a": 1})
    return predict()


@provoke("The training of a model has diverged")
def diverged(dataset):
    predict = Prediction(dataset)
    checkpoint = predict.model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    next(iter(content["network_weights"].values())).fill_(torch.nan)
    torch.save(content, checkpoint)
    return predict()


@provoke("`-tr`, `-p` or `-c` with `-m`, and the model there is another one")
def another_model(dataset):
    return Prediction(dataset)("-tr", "REHRSegTrainer")


@provoke("`-o` leads into a file, or to a place where no folder can be made")
def into_a_file(dataset):
    return Prediction(dataset)(target="scan.nii.gz/seg.nii.gz")


@provoke("`-num_parts` with one scan")
def parts_of_one_scan(dataset):
    return Prediction(dataset)("-num_parts", 2)


@provoke("`--grid` is no grid and no existing path")
def no_grid(dataset):
    return Prediction(dataset)("--grid", "HR")


@provoke("`--grid` has another count of voxel sizes than one or three, or impossible ones")
def two_sizes(dataset):
    return Prediction(dataset)("--grid", "0.5,0.5")


@provoke("Voxel sizes of `--grid` with blanks between")
def blanks_between(dataset):
    return Prediction(dataset)("--grid", "0.5", "0.5", "0.5")


@provoke("`--grid` names two grids whose files would be called alike")
def grids_alike(dataset):
    return Prediction(dataset)("--grid", "native", "native")


@provoke("`--grid hr`, and the model has no thick slices")
def no_thick_slices(dataset):
    predict = Prediction(dataset)
    plans = json.loads((predict.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    del plans["configurations"]["3d_fullres"]["rehrseg"]
    change_json(predict.model / "plans.json", **plans)
    return predict("--grid", "hr")


@provoke("The folder of `--grid` has no file for a case")
def no_grid_for_a_case(dataset):
    return Prediction(dataset)("--grid", dataset.raw)


@provoke("The voxels of `--grid` are much too small")
def small_voxels(dataset):
    return Prediction(dataset)("--grid", "0.0001")


@provoke("The voxels of `--grid`, or of its file, are much longer than the scan")
def long_voxels(dataset):
    return Prediction(dataset)("--grid", "1e6")


@provoke("The file of `--grid` lies elsewhere in space")
def elsewhere(dataset):
    return Prediction(dataset)("--grid", dataset.write("elsewhere.nrrd", np.zeros(SHAPE), origin=(900, 0, 0)))


@provoke("`--hr_from head` or `mean` with a network that has no HR head")
def no_hr_head(dataset):
    return Prediction(dataset)("--hr_from", "head")


@provoke("A cascade without `-prev_stage_predictions`")
def cascade(dataset):
    return cascaded(dataset)()


@provoke("A segmentation of a cascade's previous stage lies elsewhere than the scan")
def previous_stage_elsewhere(dataset):
    predict, folder = cascaded(dataset), dataset.folder / "previous"
    labels = scan() > 0
    labels.SetOrigin([50.0, 0, 0])
    folder.mkdir()
    sitk.WriteImage(labels, str(folder / "scan.nii.gz"))
    return predict("-prev_stage_predictions", folder)


def cascaded(dataset):
    predict = Prediction(dataset)
    predict.model = write_random_model(predict.folder / "cascade", channels=3)  # one, and two labels
    change_json(predict.model / "dataset.json", channel_names={"0": "MRI"})
    plans = json.loads((predict.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "previous_stage": None}
    change_json(predict.model / "plans.json", **plans)
    return predict


@provoke("`rehrseg viewers` with a `.seg.nrrd` or npz file")
def npz_for_viewers(dataset):
    return dataset.says("viewers", "-i", save_probabilities(dataset))


def pairs(dataset, *options, cases="abcde", usual=None, better=None, name="better"):
    """What `rehrseg pair` says of two folders of scans; `usual` and `better` are other files of them."""
    scans = {case: np.random.default_rng(number).random(SHAPE) for number, case in enumerate(cases)}
    folders = {"usual": scans | (usual or {}), name: scans | (better or {})}
    for folder, files in folders.items():
        for case, values in files.items():
            if values is not None:
                dataset.write(f"{folder}/{case}.nrrd", np.asarray(values, np.float32))
    given = ["--source", dataset.raw / "usual", "--privileged", dataset.raw / name, "-o", 2, "-np", 1]
    return dataset.says("pair", *given, *options)


@provoke("A case lacks a file in one of the folders")
def unpaired(dataset):
    return pairs(dataset, better={"c": None})


@provoke("No case has a file in every folder")
def other_names(dataset):
    return pairs(dataset, better={**dict.fromkeys("abcde"), "f": np.ones(SHAPE)})


@provoke("A folder has files of two formats")
def two_formats(dataset):
    dataset.write("better/f.mha", np.zeros(SHAPE, np.float32))
    return pairs(dataset)


@provoke("A folder has several channels")
def two_channels(dataset):
    dataset.raw.joinpath("better").mkdir()
    return pairs(dataset, cases=["a_0000", "a_0001", "b_0000"])


@provoke("A case has two files in a folder (`s1` and `s1_0000`)")
def two_files(dataset):
    return pairs(dataset, "--skip-unpaired", better={"a_0000": np.ones(SHAPE)})


@provoke("A folder is given twice, such as to `--source` and `--privileged`")
def folder_twice(dataset):
    return pairs(dataset, name="usual")


@provoke("`--source =DIR`, or no folder")
def unnamed_channel(dataset):
    return pairs(dataset, "--source", "=usual")


@provoke("Two folders have the same name")
def one_name(dataset):
    return pairs(dataset, name="others/usual")


@provoke("The scans of a pair lie on different grids")
def other_grid(dataset):
    return pairs(dataset, better={"b": np.ones((8, 6, 6))})


@provoke("The scans of a pair do not show the same edges")
def misregistered(dataset):
    return pairs(dataset, better={"b": np.random.default_rng(9).random(SHAPE)})


@provoke("The usual scan of a pair is masked where the better one is not")
def one_masked(dataset):
    return pairs(dataset, usual={"b": np.where(np.arange(SHAPE[2]) < 4, 1.0, 0.0) + np.zeros(SHAPE)})


@provoke("NaN or infinite values in a scan, in any format")
def nan_in_pair(dataset):
    for case in "abcde":
        values = np.full(SHAPE, np.nan if case == "b" else 1, np.float32)
        dataset.write(f"better/{case}.nii.gz", values)
    return pairs(dataset, better=dict.fromkeys("abcde"))


@provoke("A scan has one value everywhere")
def constant_scan(dataset):
    return pairs(dataset, better={"b": np.ones(SHAPE)})


def label_maps(dataset, *, labelled):
    for case in "abcde":
        dataset.write(f"seg/{case}.nrrd", np.full(SHAPE, case in labelled, np.uint8))
    return pairs(dataset, "--labels", dataset.raw / "seg")


@provoke("The label maps of `--labels` are all background")
def background_alone(dataset):
    return label_maps(dataset, labelled="")


@provoke("One of them is")
def one_without_labels(dataset):
    return label_maps(dataset, labelled="abde")


@provoke("Fewer than five pairs")
def few_pairs(dataset):
    return pairs(dataset, cases="abc")


def twins(dataset, *options):
    scanner = ["--resolution", 2, "--snr", 9, "--contrast", 1]
    return dataset.says("simulate-field", "-d", 1, "-o", 2, "-np", 1, *scanner, *options)


@provoke("A scan to simulate from has values below 0, or none above")
def no_magnitude(dataset):
    return twins(dataset)


def write_positive(dataset, *values):
    """Scans with one channel that can be simulated from."""
    dataset.describe(channel_names={"0": "T1"})
    for case, image in zip("ab", values, strict=True):
        (dataset.raw / "imagesTr" / f"{case}_0001.nrrd").unlink()
        dataset.write(f"imagesTr/{case}_0000.nrrd", image.astype(np.float32))


@provoke("A scan to simulate from has one value everywhere")
def one_value(dataset):
    write_positive(dataset, np.random.default_rng(0).random(SHAPE), np.ones(SHAPE))
    return twins(dataset)


@provoke("No voxel is smaller than `--resolution`")
def fine_resolution(dataset):
    write_positive(dataset, *np.random.default_rng(0).random((2, *SHAPE)))
    return twins(dataset, "--resolution", 1)


@provoke("The dataset to simulate from has pairs already")
def twins_of_pairs(dataset):
    dataset.describe(rehrseg_privileged_channels=["1"])
    return twins(dataset)


@provoke("`--cases` names cases that are not there")
def no_such_cases(dataset):
    return twins(dataset, "--cases", "0:3")


@provoke("`--test-cases` names some of `--cases`")
def same_cases(dataset):
    return twins(dataset, "--test-cases", "0:1")


def refusal(function, *arguments):
    """What a function raises."""
    with pytest.raises((ValueError, NotImplementedError)) as error:
        function(*arguments)
    return {"error": str(error.value)}


@provoke("The blocks `rehrseg` and `guidance` do not agree")
def two_rates(dataset):
    return refusal(learning_rate_from_trained, {"rehrseg": {}, "guidance": {"learning_rate_from_trained": 0.1}})


@provoke("Guidance with a cascade")
def guided_cascade(dataset):
    return refusal(load_guidance, {"spacing": [1, 1, 1], "batch_size": 2, "previous_stage": "3d_lowres"})


@provoke("A paired dataset does not say which channels are privileged")
def no_key(dataset):
    return refusal(PairedChannels.of_dataset, {"channel_names": {"0": "a", "1": "b", "2": "c"}})


@provoke("A dataset without pairs")
def no_pairs(dataset):
    return refusal(PairedChannels.of_dataset, {"channel_names": {"0": "a"}})


@provoke("`base_features` does not fit the keeper's blocks")
def odd_width(dataset):
    return refusal(load_guidance, {"spacing": [1, 1, 1], "batch_size": 2, "guidance": {"base_features": 6}})


@provoke("`-i` has more or fewer files than the model has channels")
def other_channels(dataset):
    return Prediction(dataset)(source=("scan.nii.gz", "scan.nii.gz"))


@provoke("Several files for `-i` and a folder for `-o`")
def channels_to_a_folder(dataset):
    return Prediction(dataset)(source=("scan.nii.gz", "scan.nii.gz"), target=".")


@provoke("`-o` has an unknown ending")
def unknown_ending(dataset):
    return Prediction(dataset)(target="seg.txt")


@provoke("`-o` has an ending that the model's reader cannot write")
def ending_of_no_reader(dataset):
    return Prediction(dataset)(target="seg.png")


@provoke(
    "`-o` would replace a file that is no segmentation of the model, for example because `-i` and `-o` are swapped"
)
def swapped(dataset):
    predict = Prediction(dataset)
    sitk.WriteImage(scan() > 0, str(predict.folder / "seg.nii.gz"))
    return predict(source=("seg.nii.gz",), target="scan.nii.gz")


@provoke("`-m` is a dataset's number")
def number_of_a_dataset(dataset):
    return Prediction(dataset)(model="504")


@provoke("`-num_parts` without `-part_id`")
def no_part(dataset):
    return Prediction(dataset).csv("case,file0", "a,scan.nii.gz", options=("-num_parts", 2))


@provoke("`-i` is a scan of integers")
def surfaces_of_a_scan(dataset):
    values = (np.arange(np.prod(SHAPE)) - 9).reshape(SHAPE).astype(np.int16)
    return dataset.says("surfaces", "-i", dataset.write("scans/scan.nrrd", values), "-o", dataset.folder / "out")


@provoke("`-o` is called like a file")
def folder_like_a_file(dataset):
    return dataset.says("surfaces", "-i", dataset.raw / "predicted", "-o", dataset.folder / "label.stl")


@provoke("The dataset has thick slices already")
def thick_already(dataset):
    for case in "ab":
        for name in (f"imagesTr/{case}_0000", f"imagesTr/{case}_0001", f"labelsTr/{case}"):
            image = sitk.ReadImage(str(dataset.raw / f"{name}.nrrd"))
            image.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(image, str(dataset.raw / f"{name}.nrrd"))
    return dataset.simulate()


@provoke("`-o` would replace a scan")
def onto_itself(dataset):
    return Prediction(dataset)(target="scan.nii.gz")


@provoke("A csv file lacks a column")
def no_column(dataset):
    return Prediction(dataset).csv("case,file", "a,scan.nii.gz")


@provoke("A csv file names a case twice")
def case_twice(dataset):
    return Prediction(dataset).csv("case,file0", "a,scan.nii.gz", "a,scan.nii.gz")


@provoke("A csv file names a file that is not there")
def no_file(dataset):
    return Prediction(dataset).csv("case,file0", "a,none.nii.gz")


@provoke("Cases failed with `--keep_going`")
def failed_cases(dataset):
    return Prediction(dataset).csv("case,file0", "a,none.nii.gz", options=("--keep_going",))


def report(dataset, *options):
    said = dataset.says("report", *options, "-o", dataset.folder / "report.html")
    assert not (dataset.folder / "report.html").exists()
    return said


def report_predictions(dataset, *options):
    labels = ["-djfile", dataset.raw / "dataset.json"]
    return report(dataset, "-pred", dataset.raw / "predicted", *labels, *options)


@provoke("Neither a fold nor predictions, or both")
def no_form(dataset):
    return report(dataset)


@provoke("No dataset.json beside the predictions")
def predictions_without_labels(dataset):
    return report(dataset, "-pred", dataset.raw / "predicted")


@provoke("The reference lies neither on the predictions' grid nor on the acquired slices")
def reference_elsewhere(dataset):
    dataset.write("labelsTr/b.nrrd", np.zeros(SHAPE, np.uint8), origin=(9.0, 0.0, 0.0))
    return report_predictions(dataset, "-ref", dataset.raw / "labelsTr")


@provoke("`-i` has no scan of any prediction")
def scans_of_others(dataset):
    dataset.write("others/c_0000.nrrd", np.zeros(SHAPE, np.float32))
    return report_predictions(dataset, "-i", dataset.raw / "others")


def fold_of(dataset, *, trained, trainer="REHRSegTrainer"):
    model = dataset.folder / "results" / "Dataset001_A" / f"{trainer}__nnUNetPlans__3d_fullres"
    (model / "fold_0" if trained else model).mkdir(parents=True)
    shutil.copy(dataset.raw / "dataset.json", model)
    (model / "plans.json").write_text(json.dumps({"configurations": {}, "image_reader_writer": "SimpleITKIO"}))
    with environment(nnUNet_results=str(dataset.folder / "results")):
        return report(dataset, "-d", 1, "-c", "3d_fullres", "-tr", trainer)


@provoke("The fold is not trained")
def no_fold(dataset):
    return fold_of(dataset, trained=False)


@provoke("The training is of a teacher or keeper")
def report_of_images(dataset):
    return fold_of(dataset, trained=True, trainer="KnowledgeKeeperTrainer_2epochs")


@provoke("The training has no validation yet")
def no_validation(dataset):
    return fold_of(dataset, trained=True)


OWN_RUN = FoldRun("Dataset002_Pairs", "KnowledgeKeeperTrainer", "p", "3d_fullres", 0, Path("results"))
PAIR_CONFIGURATION = {
    "patch_size": [16, 16, 16],
    "spacing": [1.0, 1.0, 1.0],
    "batch_size": 2,
    "architecture": {
        "arch_kwargs": {"conv_op": "Conv3d", "strides": [[1] * 3, [2] * 3], "kernel_sizes": [[3] * 3] * 2},
    },
    "guidance_channels": {"source": [0], "privileged": [1]},
}


def raised(function, *arguments, **options):
    with pytest.raises((ValueError, FileNotFoundError, NotImplementedError)) as caught:
        function(*arguments, **options)
    return {"error": str(caught.value)}


@provoke("A keeper is trained before its teacher")
def no_teacher(dataset):
    return raised(open_teacher, OWN_RUN, PAIR_CONFIGURATION, checkpoint="final")


@provoke("`--c` with another teacher")
def another_teacher(dataset):
    continued = SimpleNamespace(_resumed=True, _is_of=lambda teacher: False, network=torch.nn.Identity())
    teacher = FrozenTeacher(Path("results/checkpoint_final.pth"), torch.nn.Identity(), "0" * 64)
    return raised(KnowledgeKeeperTrainer.learn_from, continued, teacher)


@provoke("`--c` with an adversary where there was none")
def no_adversary(dataset):
    pair = OptimizerPair(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]), SimpleNamespace())
    return raised(pair.load_state_dict, OptimizerPair(pair.own, None).state_dict())


@provoke("A teacher of other settings")
def other_teacher(dataset):
    run = replace(OWN_RUN.sibling("GuidanceTeacherTrainer"), results=dataset.folder)
    run.folder.mkdir(parents=True)
    weights = build_teacher({**PAIR_CONFIGURATION, "guidance": {"base_features": 4}}).state_dict()
    torch.save({"network_weights": weights}, run.final_checkpoint)
    return raised(open_teacher, replace(OWN_RUN, results=dataset.folder), PAIR_CONFIGURATION, checkpoint="final")


def written_teacher(dataset):
    """A finished teacher, and how to open it for its own configuration."""
    run = KeeperRun(write_keeper(dataset.folder, trainer="GuidanceTeacherTrainer"))
    weights = build_teacher(run.configuration).state_dict()
    torch.save({"network_weights": weights}, run.run.final_checkpoint)
    return run, partial(open_teacher, replace(run.run, trainer="KnowledgeKeeperTrainer"), checkpoint="final")


@provoke("The teacher was trained with other strides, level restoration or normalisation")
def teacher_of_other_plans(dataset):
    run, open_for = written_teacher(dataset)
    return raised(open_for, {**run.configuration, "use_mask_for_norm": [False, True]})


@provoke("The training of the teacher has diverged")
def diverged_teacher(dataset):
    run, open_for = written_teacher(dataset)
    weights = torch.load(run.run.final_checkpoint, weights_only=True)["network_weights"]
    weights["image_range"].fill_(torch.nan)
    torch.save({"network_weights": weights}, run.run.final_checkpoint)
    return raised(open_for, run.configuration)


@provoke("`REHRSEG_TEACHER` names another trainer's folder")
def no_teachers_folder(dataset):
    run, open_for = written_teacher(dataset)
    with environment(REHRSEG_TEACHER=str(write_keeper(dataset.folder).folder)):
        return raised(open_for, run.configuration)


@provoke("The keeper was taught without augmented intensities")
def unseen_intensities(dataset):
    guidance = {"base_features": 4, "keeper": {"source_augmentation": "spatial"}}
    own, keeper = planned(), KeeperRun(write_keeper(dataset.folder, guidance=guidance))
    return warned(doubts_of(own, keeper, view_of(own, keeper)))


def measured(**cases):
    """What is said of preprocessed pairs before a training."""
    lines = []
    trainer = SimpleNamespace(
        local_rank=0,
        is_ddp=False,
        channels=PairedChannels((0,), (1,)),
        preprocessed_dataset_folder="",
        do_split=lambda: (list(cases), []),
        dataset_class=lambda folder, keys: SimpleNamespace(load_case=lambda key: cases[key]),
        set_image_range=lambda widths: None,
        print_to_log_file=lines.append,
    )
    PairedTraining.measure_image_range(trainer)
    return {"warning": "".join(lines)}


@provoke("A pair has a constant channel")
def constant_channel(dataset):
    return measured(a=(np.zeros((2, 2, 2, 2)), np.zeros((1, 2, 2, 2)), None, {}))


@provoke("Preprocessed pairs do not show the same edges")
def edges_apart(dataset):
    rng = np.random.default_rng(0)
    scans = rng.normal(size=(5, 8, 12, 12))
    pairs = {case: np.stack([scan, scan]) for case, scan in zip("abcd", scans, strict=False)}
    pairs["d"][1] = scans[4]
    return measured(**{case: (pair, np.zeros((1, 8, 12, 12)), None, {}) for case, pair in pairs.items()})


def compared(dataset):
    """What is said of the grids of the raw dataset's cases, its two channels the two scans."""
    lines = []
    trainer = SimpleNamespace(
        plans_manager=SimpleNamespace(dataset_name="Dataset001_A", image_reader_writer_class=SimpleITKIO),
        do_split=lambda: (["a"], ["b"]),
        print_to_log_file=lines.append,
    )
    PairedTraining.check_grids(trainer)
    return {"warning": "".join(lines)}


@provoke("The raw scans of a pair lie on different grids")
def raw_grids_apart(dataset):
    dataset.write("imagesTr/b_0001.nrrd", np.zeros(SHAPE, np.float32), origin=(0.0, 9.0, 0.0))
    return raised(compared, dataset)


@provoke("The raw scans are not at hand, or a header cannot be read")
def no_raw_scans(dataset):
    assert compared(dataset)["warning"] == ""
    with environment(nnUNet_raw=""):
        return compared(dataset)


@provoke("Patches without room for all levels")
def few_levels(dataset):
    lines = []
    stages = {"conv_op": "Conv3d", "strides": [1, 2, 2, 2], "kernel_sizes": [3] * 4}
    configuration = {**PAIR_CONFIGURATION, "patch_size": [4, 4, 4], "architecture": {"arch_kwargs": stages}}
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(configuration=configuration), print_to_log_file=lines.append
    )
    PairedTraining._say_levels(trainer)
    return {"warning": "".join(lines)}


@provoke("Patches without room for two levels")
def one_level(dataset):
    return raised(planned_shape, {**PAIR_CONFIGURATION, "patch_size": [2, 2, 2]})


@provoke("Patches without room for the keeper's adversary")
def no_room_for_the_adversary(dataset):
    return raised(check_adversary, {**PAIR_CONFIGURATION, "patch_size": [2, 16, 16]})


@provoke("`nnUNetv2_predict` with a keeper")
def predict_with_keeper(dataset):
    return raised(KnowledgeKeeperTrainer.build_network_architecture, None, None, 2, 2, False)


@provoke("`nnUNetv2_predict` with a teacher")
def predict_with_teacher(dataset):
    return raised(GuidanceTeacherTrainer.build_network_architecture, None, None, 2, 2, False)


@provoke("`rehrseg synthesize` with another trainer's model")
def another_trainers_model(dataset):
    other = Prediction(dataset)
    files = ["-i", other.folder / "scan.nii.gz", "-o", other.folder / "better.nii.gz"]
    return dataset.says("synthesize", *files, "-m", other.model, "-device", "cpu")


def guide(dataset, *keepers, fold=0, damage=None, **scans):
    """What is said when a training of other scans looks for these finished keepers, and whether one fits."""
    results, own = dataset.folder / "results", planned(**scans)
    results.mkdir(exist_ok=True)
    for options in keepers:
        run = write_keeper(results, **options)
        if damage:
            damage(run)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        view_of(own, find_keeper(training(results, fold=fold), None, dimension=3))
    return {"error": str(caught.value).replace("\n", " ")}


def guide_by(dataset, value, *keepers):
    with environment(REHRSEG_KEEPER=str(value)):
        return guide(dataset, *keepers)


@provoke("No keeper is finished")
def no_keeper(dataset):
    return guide(dataset)


@provoke("The dataset that `REHRSEG_KEEPER` or the settings name has none")
def no_keeper_of_the_dataset(dataset):
    return guide_by(dataset, 611, {})


@provoke("There are only keepers of the other dimension")
def flat_keeper(dataset):
    return guide(dataset, {"configuration": "2d"})


@provoke("Several keepers could guide")
def several_keepers(dataset):
    return guide(dataset, {}, {"dataset": "Dataset611_Others"})


def results_of(dataset, trainer, configuration="3d_fullres"):
    return dataset.folder / "results" / "Dataset610_Pairs" / f"{trainer}__p__{configuration}" / "fold_0"


def rename_to_backup(run):
    run.folder.parent.rename(run.folder.parent.with_name("KnowledgeKeeperTrainer__backup"))


@provoke("A backup of a keeper, or one whose plans or dataset.json are damaged, lies in nnUNet_results")
def backup_of_a_keeper(dataset):
    said = []
    trainer = SimpleNamespace(print_to_log_file=said.append)
    write_keeper(dataset.folder)
    rename_to_backup(write_keeper(dataset.folder, "Dataset611_Others"))
    find_keeper(training(dataset.folder), None, dimension=3, warn=partial(GuidedTrainer.warn, trainer))
    return {"warning": "".join(said)}


@provoke("No keeper is left but such")
def only_a_backup(dataset):
    return guide(dataset, {}, damage=rename_to_backup)


def named_keeper(dataset, damage):
    """The only one, which is named."""
    with environment(REHRSEG_KEEPER=str(results_of(dataset, "KnowledgeKeeperTrainer"))):
        return guide(dataset, {}, damage=damage)


def change_configurations(run, change):
    plans = json.loads(run.plans_file.read_text())
    change(plans["configurations"])
    run.plans_file.write_text(json.dumps(plans))


@provoke("The folder of a keeper, teacher or guided model was renamed, or the plans in it are others")
def plans_of_another_configuration(dataset):
    return named_keeper(dataset, partial(change_configurations, change=lambda parts: parts.pop("3d_fullres")))


@provoke("plans.json of a keeper is not of its training")
def plans_without_channels(dataset):
    def change(configurations):
        configurations["3d_fullres"].pop("guidance_channels")

    return named_keeper(dataset, partial(change_configurations, change=change))


@provoke("dataset.json of a keeper is gone")
def keeper_without_dataset_json(dataset):
    return named_keeper(dataset, lambda run: run.plans_file.with_name("dataset.json").unlink())


@provoke("The keeper's only folds are others")
def other_fold(dataset):
    return guide(dataset, {"folds": (3,)}, fold=1)


@provoke("`guidance.checkpoint` is `best`, and the keeper or teacher has none")
def no_best_checkpoint(dataset):
    keeper = KeeperRun(write_keeper(dataset.folder))
    return raised(open_keeper, keeper, SourceView(channels=(0,)), checkpoint="best")


@provoke("`REHRSEG_KEEPER` names a model's folder without its fold")
def keeper_without_fold(dataset):
    return guide_by(dataset, results_of(dataset, "KnowledgeKeeperTrainer").parent, {})


@provoke("`REHRSEG_KEEPER` names another trainer's folder")
def teacher_for_a_keeper(dataset):
    folder = results_of(dataset, "GuidanceTeacherTrainer")
    return guide_by(dataset, folder, {"trainer": "GuidanceTeacherTrainer"})


@provoke("`REHRSEG_KEEPER` names a fold that is not finished")
def unfinished_keeper(dataset):
    return guide_by(dataset, results_of(dataset, "KnowledgeKeeperTrainer"))


@provoke("`REHRSEG_KEEPER` names a keeper of the other dimension")
def chosen_flat_keeper(dataset):
    folder = results_of(dataset, "KnowledgeKeeperTrainer", "2d")
    return guide_by(dataset, folder, {"configuration": "2d"})


def leak(dataset, splits):
    preprocessed = dataset.folder / "preprocessed" / "Dataset610_Pairs"
    preprocessed.mkdir(parents=True)
    if splits is not None:
        (preprocessed / "splits_final.json").write_text(splits if isinstance(splits, str) else json.dumps(splits))
    keeper = KeeperRun(write_keeper(dataset.folder))
    with environment(nnUNet_preprocessed=str(preprocessed.parent)):
        return check_leak(keeper, ["a"])


def warned(doubts):
    said = []
    GuidedTrainer.warn(SimpleNamespace(print_to_log_file=said.append), doubts)
    return {"warning": "".join(said)}


@provoke("The keeper was trained on validation cases")
def known_cases(dataset):
    return raised(leak, dataset, [{"train": ["a"], "val": ["b"]}])


@provoke("The keeper's teacher, of another fold, was trained on validation cases")
def known_to_the_teacher(dataset):
    preprocessed, results = dataset.folder / "preprocessed" / "Dataset610_Pairs", dataset.folder / "results"
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["b"]}, {"train": ["a"]}]))
    keeper = KeeperRun(write_keeper(results))
    teacher = replace(keeper.run, trainer="GuidanceTeacherTrainer", fold=1)
    teacher.folder.mkdir(parents=True)
    torch.save({"network_weights": {}}, teacher.final_checkpoint)
    with environment(nnUNet_preprocessed=str(preprocessed.parent)):
        return raised(check_teachers_leak, keeper, hash_weights({}), ["a"])


@provoke("The teacher that taught the keeper is gone")
def unknown_teacher(dataset):
    return warned(check_teachers_leak(KeeperRun(write_keeper(dataset.folder)), "0" * 64, ["a"]))


@provoke("The folds of the pairs are not at hand")
def unknown_cases(dataset):
    return warned(leak(dataset, None))


@provoke("splits_final.json of the pairs is damaged")
def damaged_folds(dataset):
    return raised(leak, dataset, '[{"train": ["a"')


@provoke("It has no folds")
def no_folds(dataset):
    return raised(leak, dataset, [])


@provoke("dataset.json names channels by nnU-Net 1's `modality`")
def modality(dataset):
    content = {**DATASET, "modality": DATASET["channel_names"]}
    del content["channel_names"]
    return raised(GuidedTrainer.initialize, SimpleNamespace(resolved=None, dataset_json=content))


@provoke("A channel of the keeper is missing")
def channel_of_the_keeper(dataset):
    return guide(dataset, {}, names=("T2",))


@provoke("`guidance.channels` names what the keeper does not see")
def unknown_channel(dataset):
    return raised(view_of, planned(), KeeperRun(write_keeper(dataset.folder)), names={"T3": "T1"})


@provoke("Channels have one name and are not as many as the keeper's")
def channels_of_one_name(dataset):
    return guide(dataset, {}, names=("T1", "T1"))


@provoke("The dataset has the better scan")
def better_scan(dataset):
    return guide(dataset, {}, names=("T1", "T1_7T"))


@provoke("The datasets are normalised in different ways")
def other_scheme(dataset):
    return guide(dataset, {}, normalization_schemes=["NoNormalization"])


@provoke("One dataset keeps the background at 0")
def other_mask(dataset):
    return guide(dataset, {}, use_mask_for_norm=[True])


@provoke("2d slices along another axis than the keeper's")
def other_slices(dataset):
    keeper = KeeperRun(write_keeper(dataset.folder, configuration="2d"))
    return raised(view_of, planned(configuration="2d", transpose=(1, 0, 2)), keeper)


@provoke("Patches that are too small for the keeper's levels")
def small_patches(dataset):
    return guide(dataset, {}, patch_size=[2, 4, 4])


@provoke("Patches far from sizes that the keeper's strides divide")
def stretched_patches(dataset):
    own, keeper = planned(patch_size=[16, 24, 21]), KeeperRun(write_keeper(dataset.folder))
    return warned(doubts_of(own, keeper, view_of(own, keeper)))


@provoke("Patches of another size in mm than the keeper's")
def other_patches(dataset):
    own, keeper = planned(patch_size=[16, 64, 64]), KeeperRun(write_keeper(dataset.folder))
    return warned(doubts_of(own, keeper, view_of(own, keeper)))


@provoke("Scans that lie otherwise than the keeper's")
def other_orientation(dataset):
    return warned_of_orientation(dataset, damaged=False)


@provoke("A preprocessed case of either dataset is damaged")
def damaged_case(dataset):
    return warned_of_orientation(dataset, damaged=True)


def warned_of_orientation(dataset, *, damaged):
    keeper, folders = KeeperRun(write_keeper(dataset.folder)), []
    for name, sign in (("Dataset610_Pairs", 1), ("own", -1)):
        folders.append(dataset.folder / name / "p_3d_fullres")
        folders[-1].mkdir(parents=True)
        geometry = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (sign, 0, 0, 0, sign, 0, 0, 0, 1)}
        content = pickle.dumps({"sitk_stuff": geometry})
        (folders[-1] / "a.pkl").write_bytes(b"" if damaged else content)
    with environment(nnUNet_preprocessed=str(dataset.folder)):
        return warned(orientation_doubts(folders[1], keeper))


@provoke("A fold with another keeper architecture or fusion than the model's other folds")
def other_folds(dataset):
    return raised(check_other_folds, *fold_of_another_kind(dataset))


@provoke("Folds that began together, with keepers of different architecture")
def folds_together(dataset):
    return raised(check_own_plans, *fold_of_another_kind(dataset))


def fold_of_another_kind(dataset):
    """A fold of a model whose plans fold 1 has written, which has a checkpoint."""
    keeper = KeeperRun(write_keeper(dataset.folder))
    resolved, folder = resolve(keeper, SourceView(channels=(0,))), dataset.folder / "GuidedTrainer__p__3d_fullres"
    (folder / "fold_1").mkdir(parents=True)
    (folder / "fold_1" / "checkpoint_final.pth").touch()
    plans = plans_of(1, guidance_keeper=resolved.as_json())
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder / "fold_0", "3d_fullres", replace(resolved, kernel=5), FusionConfig()


@provoke("The keeper's checkpoint is not of the plans beside it")
def other_keeper(dataset):
    keeper = KeeperRun(write_keeper(dataset.folder))
    weights = build_keeper({**keeper.configuration, "guidance": {"base_features": 8}}).state_dict()
    torch.save({"network_weights": weights}, keeper.run.final_checkpoint)
    return raised(open_keeper, keeper, SourceView(channels=(0,)), checkpoint="final")


@provoke("A network that is no encoder and decoder")
def other_network(dataset):
    keeper = keeper_for()
    view = SourceView(channels=(0,))
    return raised(add_guidance, torch.nn.Identity(), keeper, view=view, fusion=FusionConfig())


class RefusedWeights(SafeCheckpoints):
    """A trainer whose plans have changed, so that torch refuses the weights."""

    configuration_name = "3d_fullres"

    def __init__(self, folder, plans):
        self.output_folder, self.plans_manager = str(folder), PlansManager(plans)


@provoke("`--c` or `--val` after a setting that builds the network has changed in the plans")
def changed_plans(dataset):
    before, now = (plans_of(1, guidance={"keeper": {"kernel": kernel}}) for kernel in (3, 7))
    trainer = RefusedWeights(dataset.folder, now)
    with patch.object(TrainerMixin, "load_checkpoint", side_effect=RuntimeError("in loading state_dict"), create=True):
        return raised(trainer.load_checkpoint, {"init_args": {"plans": before}})


def test_every_documented_situation_is_provoked():
    assert MESSAGES.keys() == PROVOKED.keys()
    assert len(MESSAGES) == sum(line.startswith("| ") and "situation" not in line for line in lines())


def lines():
    return DOCUMENT.read_text().splitlines()


@pytest.mark.parametrize("situation", MESSAGES)
def test_the_message_is_what_is_read(dataset, situation):
    kind, message = MESSAGES[situation]
    said = PROVOKED[situation](dataset)[kind]
    assert re.search(pattern(message), said), said
