"""Several channels; 10 classes and 1; classes, and all foreground, missing from a case; `fold all`."""

import json
import re

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from workspace import log_of

from rehrseg_nnunet.cases import interpolated as interpolation

pytestmark = pytest.mark.slow

ISOTROPIC, MANY_ISOTROPIC, ONE_ISOTROPIC, MANY, ONE = 1, 2, 3, 4, 5
FACTOR = 4
CLASSES = 10
CHANNELS = {"0": "MRI", "1": "noNorm", "2": "CT"}
STAGES = ("SelfSRTrainer", "REHRSegTrainer")
# cases, by number
EMPTY, WITHOUT_LAST_CLASS, CONSTANT_CHANNEL = "phantom_001", "phantom_002", "phantom_003"


def edit(file, change):
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    return changed


def write_many_classes_and_channels(nnunet):
    """Foreground in ten sectors, one of them missing in one case and all in another; three channels."""
    raw = nnunet.copy_dataset(ISOTROPIC, MANY_ISOTROPIC, "Many")
    for file in raw.glob("labelsTr/*.nii.gz"):
        case = file.name.removesuffix(".nii.gz")

        def sectors(labels, case=case):
            y, x = np.indices(labels.shape)[1:] - np.reshape(labels.shape[1:], (2, 1, 1, 1)) / 2 + 0.5
            sector = np.floor((np.arctan2(y, x) / np.pi + 1) / 2 * CLASSES).astype(np.uint8) + 1
            if case == WITHOUT_LAST_CLASS:
                sector[sector == CLASSES] = 0
            return np.where(labels > 0, sector, 0) * (case != EMPTY)

        sitk.WriteImage(edit(file, sectors), str(file))
    for file in raw.glob("imagesTr/*_0000.nii.gz"):
        constant = file.name.startswith(CONSTANT_CHANNEL)
        channels = (
            lambda image, c=constant: np.zeros_like(image) if c else image / 100,
            lambda image: -10 * image,  # CT is clipped to the foreground's percentiles
        )
        for number, change in enumerate(channels, start=1):
            sitk.WriteImage(edit(file, change), str(file).replace("_0000", f"_{number:04d}"))
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["channel_names"] = CHANNELS
    dataset["labels"] = {"background": 0, **{f"sector {n}": n for n in range(1, CLASSES + 1)}}
    (raw / "dataset.json").write_text(json.dumps(dataset))


def write_one_class(nnunet):
    """One class, missing in one case, which is the whole validation set of fold 1."""
    raw = nnunet.copy_dataset(ISOTROPIC, ONE_ISOTROPIC, "One")
    for file in raw.glob("labelsTr/*.nii.gz"):
        empty = file.name.startswith(EMPTY)
        sitk.WriteImage(edit(file, lambda labels, e=empty: (labels > 0) * np.uint8(not e)), str(file))
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["channel_names"] = {"0": "rescale_to_0_1"}
    dataset["labels"] = {"background": 0, "any": 1}
    (raw / "dataset.json").write_text(json.dumps(dataset))


@pytest.fixture(scope="module")
def prepared(nnunet):
    nnunet.write_phantom(ISOTROPIC, cases=5)
    write_many_classes_and_channels(nnunet)
    write_one_class(nnunet)
    for source, target in ((MANY_ISOTROPIC, MANY), (ONE_ISOTROPIC, ONE)):
        nnunet.simulate(source, target, factor=FACTOR)
        nnunet.prepare(target)
    cases = [f"phantom_{n:03d}" for n in range(5)]
    splits = [{"train": [c for c in cases if c != val], "val": [val]} for val in (cases[0], EMPTY)]
    (nnunet.plans(ONE).parent / "splits_final.json").write_text(json.dumps(splits))
    return nnunet


@pytest.fixture(scope="module")
def many(prepared):
    """Both stages on all cases of the dataset with ten classes and three channels."""
    with pytest.MonkeyPatch.context() as patch:
        interpolated, stock = [], interpolation.save_case

        def save_and_note(folder, identifier, *arguments, **options):
            interpolated.append(identifier)
            return stock(folder, identifier, *arguments, **options)

        patch.setattr(interpolation, "save_case", save_and_note)
        for trainer in STAGES:
            prepared.train(trainer, MANY, fold="all")
    assert sorted(interpolated) == [f"phantom_{n:03d}" for n in range(5)]  # once each: validation has the same cases
    return prepared


@pytest.fixture(scope="module")
def one(prepared):
    """Both stages of two folds of the dataset with one class: the empty case is trained on, then validated on."""
    for fold in ("0", "1"):
        for trainer in STAGES:
            prepared.train(trainer, ONE, fold=fold)
    return prepared


def checkpoint(run):
    return torch.load(run / "checkpoint_final.pth", weights_only=False)


def assert_finite_losses(run):
    logged = checkpoint(run)["logging"]
    for key in ("train_losses", "val_losses"):
        assert len(logged[key]) == 2
        assert np.isfinite(logged[key]).all()
    assert "nan" not in [word for line in log_of(run).splitlines() if "loss" in line for word in line.split()]


def pseudo_hr_case(run, case):
    image, labels, _, properties = nnUNetDatasetBlosc2(str(run / "pseudo_hr"), [case]).load_case(case)
    return image[:], labels[:], properties


def test_fold_all_trains_and_validates_on_every_case(many):
    cases = {f"phantom_{n:03d}" for n in range(5)}
    stage_1, stage_2 = (many.fold(trainer, MANY, fold="all") for trainer in STAGES)
    assert {file.stem for file in (stage_1 / "pseudo_hr").glob("*.pkl")} == cases
    assert json.loads((stage_1 / "pseudo_hr.json").read_text())["fold"] == "all"
    assert f"stage 1: {stage_1 / 'checkpoint_final.pth'}" in log_of(stage_2)
    for folder in ("validation", "validation_hr"):
        assert {file.name.split(".")[0] for file in (stage_2 / folder).glob("*.nii.gz")} == cases
    for run in (stage_1, stage_2):
        assert_finite_losses(run)


def test_the_report_leaves_constant_channels_and_absent_classes_out(many):
    report = json.loads((many.fold("SelfSRTrainer", MANY, fold="all") / "self_sr_report.json").read_text())
    assert report["cases"]["simulated along y"] == report["cases"]["simulated along x"] == 5
    for methods in report["comparisons"].values():
        assert all(np.isfinite(score) for scores in methods.values() for score in scores.values())


def test_heads_and_channels_of_both_networks(many):
    stage_1, stage_2 = (checkpoint(many.fold(t, MANY, fold="all"))["network_weights"] for t in STAGES)
    heads, channels = CLASSES + 1, len(CHANNELS)
    (stem,) = (weight for key, weight in stage_1.items() if key.startswith("encoder.stem") and weight.ndim == 5)
    assert stem.shape[1] == channels + heads
    candidates = stage_1["head.attention_branch.weight"].shape[0]
    assert stage_1["head.image_branch.weight"].shape[0] == candidates * channels
    assert stage_1["head.label_branch.weight"].shape[0] == candidates * heads
    assert stage_2["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == channels
    last = max(int(key.split(".")[2]) for key in stage_2 if key.startswith("decoder.seg_layers."))
    assert stage_2[f"decoder.seg_layers.{last}.weight"].shape[0] == heads
    assert stage_2[f"decoder.seg_layers.{last}.hr_head.second.weight"].shape[0] == heads


def test_pseudo_hr_cases_keep_every_channel_with_its_normalisation(many):
    """Each HR channel, made thick again, is its own LR channel (barely trained: close to interpolation)."""
    run = many.fold("SelfSRTrainer", MANY, fold="all")
    preprocessed = many.plans(MANY).parent / "nnUNetPlans_3d_fullres"
    for file in (run / "pseudo_hr").glob("*.pkl"):
        hr, labels, _ = pseudo_hr_case(run, file.stem)
        lr = nnUNetDatasetBlosc2(str(preprocessed), [file.stem]).load_case(file.stem)[0][:]
        assert hr.shape == (len(CHANNELS) + 1, FACTOR * lr.shape[1], *lr.shape[2:])
        means = hr[:-1].reshape(len(CHANNELS), -1, FACTOR, *lr.shape[2:]).mean(2)
        differences = np.abs(means - lr).mean(axis=(1, 2, 3))
        spreads = lr.std(axis=(1, 2, 3))
        assert (differences <= 0.4 * spreads + 1e-6).all(), (file.stem, differences, spreads)
        assert (spreads[1] == 0) == (file.stem == CONSTANT_CHANNEL)
        assert 0 <= hr[-1].min() <= hr[-1].max() <= 1
        assert set(np.unique(labels)) <= set(range(-1, CLASSES + 1))


def test_class_locations_of_pseudo_hr_cases_name_all_classes(many):
    """nnU-Net's loader wants every class as a key; those that are missing have no voxels."""
    run = many.fold("SelfSRTrainer", MANY, fold="all")
    for file in (run / "pseudo_hr").glob("*.pkl"):
        _, labels, properties = pseudo_hr_case(run, file.stem)
        locations = properties["class_locations"]
        assert set(locations) == set(range(1, CLASSES + 1))
        for label, voxels in locations.items():
            assert bool(len(voxels)) == bool((labels == label).any())


def test_interpolated_cases_keep_what_is_missing(many):
    """What stage 1 trains on: no class appears that the case does not have."""
    base = many.plans(MANY).parent
    (folder,) = base.glob("*_rehrseg_r4")
    present = {}
    for file in folder.glob("*_seg.b2nd"):
        labels = blosc2.open(urlpath=str(file), mode="r")[:]
        present[file.name.removesuffix("_seg.b2nd")] = set(np.unique(labels).tolist()) - {-1}
    everything = set(range(CLASSES + 1))
    assert present[EMPTY] == {0}
    assert CLASSES not in present[WITHOUT_LAST_CLASS]
    assert set.union(*present.values()) == everything


@pytest.mark.parametrize("command", ["predict", "predict_hr"])
def test_both_predict_commands_with_fold_all(many, tmp_path, command):
    images = many.raw / many.dataset(MANY) / "imagesTr"
    output = getattr(many, command)(images, tmp_path / "out", MANY, "--save_probabilities", folds=("all",))
    files = sorted(output.glob("*.nii.gz"))
    assert len(files) == 5
    for file in files:
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert len(segmentation) == 4 * (FACTOR if command == "predict_hr" else 1)
        probabilities = np.load(file.with_name(file.name.replace(".nii.gz", ".npz")))["probabilities"]
        assert probabilities.shape == (CLASSES + 1, *segmentation.shape)
        assert np.isfinite(probabilities).all()
        np.testing.assert_array_equal(probabilities.argmax(0), segmentation)


def test_hr_prediction_without_all_channels_is_refused(many, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    file = many.raw / many.dataset(MANY) / "imagesTr" / f"{EMPTY}_0000.nii.gz"
    (folder / file.name).symlink_to(file)
    with pytest.raises(AssertionError):  # of `Workspace.rehrseg`: exit status 1
        many.predict_hr(folder, tmp_path / "out", MANY, folds=("all",))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(rf"/in must have one file for each .*{EMPTY}_0002.nii.gz, got {file.name}; ", error)


def test_one_class_and_a_case_without_foreground(one):
    for fold, cases in (("0", {"phantom_000"}), ("1", {EMPTY})):
        stage_1, stage_2 = (one.fold(trainer, ONE, fold=fold) for trainer in STAGES)
        for run in (stage_1, stage_2):
            assert_finite_losses(run)
        trained_on = {file.stem for file in (stage_1 / "pseudo_hr").glob("*.pkl")}
        assert (EMPTY in trained_on) == (fold == "0")
        report = json.loads((stage_1 / "self_sr_report.json").read_text())["comparisons"]["true HR"]
        assert np.isfinite([report["self-SR"][key] for key in ("psnr", "ssim", "spearman")]).all()
        assert np.isnan(report["B-spline + nearest"]["dice"]) == (cases == {EMPTY})
        summary = json.loads((stage_2 / "validation" / "summary.json").read_text())
        assert set(summary["mean"]) == {"1"}
        assert {file.name.split(".")[0] for file in (stage_2 / "validation_hr").glob("*.nii.gz")} == cases


def test_the_prediction_of_one_class(one, tmp_path):
    images = one.raw / one.dataset(ONE) / "imagesTr"
    output = one.predict_hr(images, tmp_path / "out", ONE, "--save_probabilities", folds=("0", "1"))
    files = sorted(output.glob("*.nii.gz"))
    assert len(files) == len(list(images.iterdir()))
    for file in files:
        probabilities = np.load(file.with_name(file.name.replace(".nii.gz", ".npz")))["probabilities"]
        assert probabilities.shape == (2, 16, 24, 24)
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))) <= {0, 1}
