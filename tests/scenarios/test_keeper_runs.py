"""What nnU-Net's commands and flags make of teachers and keepers, and that a keeper learns, through the commands."""

import json
import shutil
import zipfile
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from paired_phantom import PRIVILEGED, write_pair_folders
from short_runs import EPOCHS, STEPS
from workspace import environment, log_of

from rehrseg_nnunet.guided.report import RECONSTRUCTED, SOURCE, SYNTHESIS_REPORT, SYNTHESISED, TEACHER_REPORT
from rehrseg_nnunet.nnunet.fold_run import BEST_CHECKPOINT, FINAL_CHECKPOINT

pytestmark = pytest.mark.slow

PAIRS, USUAL = 2, "T1"
TEACHER, KEEPER = "GuidanceTeacherTrainer", "KnowledgeKeeperTrainer"
REPORTS = {TEACHER: TEACHER_REPORT, KEEPER: SYNTHESIS_REPORT}
DECODER = "decoder."
# with which a hundred steps are enough
QUICK = {
    "learning_rate": 4e-3,
    "schedule": "polynomial",
    "teacher": {"noise_std": 0.05, "feature_weight": 0.0},
    "keeper": {
        "adversarial_weight": 0.0,
        "matching_weight": 0.0,
        "distillation_weight": 0.1,
        "source_augmentation": "spatial",
    },
}
STAGES = ("teacher", "keeper")
STEPS_TO_LEARN = {TEACHER: 110, KEEPER: 70}
LEAST_GAIN_DB = 0.5  # seeds 1, 3 and 5 gained 1.7, 1.8 and 2.1 dB


@pytest.fixture(scope="module")
def paired(nnunet):
    """A planned and preprocessed dataset of pairs."""
    folders = nnunet.base / "scans"
    write_pair_folders(folders)
    scans = ("--source", folders / USUAL, "--privileged", folders / PRIVILEGED)
    nnunet.rehrseg("pair", *scans, "-o", PAIRS, "-np", 1)
    nnunet.prepare(PAIRS, options=("--method", "guidance"))
    return nnunet


@pytest.fixture(scope="module")
def trained(paired):
    """Teacher and keeper of fold 0, a step each."""
    with environment(**{EPOCHS: "1", STEPS: "1"}):
        for trainer in (TEACHER, KEEPER):
            paired.train(trainer, PAIRS)
    return paired


@pytest.fixture
def one_step(monkeypatch):
    monkeypatch.setenv(EPOCHS, "1")
    monkeypatch.setenv(STEPS, "1")


@pytest.fixture
def keeper_only(trained):
    """Change the keeper's fold; it comes back afterwards."""
    fold, kept = trained.fold(KEEPER, PAIRS), trained.base / "kept"
    shutil.copytree(fold, kept)
    yield trained
    shutil.rmtree(fold)
    kept.rename(fold)


def weights_of(fold, checkpoint=FINAL_CHECKPOINT):
    return torch.load(fold / checkpoint, weights_only=False)["network_weights"]


def images_of(folder):
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in sorted(folder.glob("*.nii.gz"))}


def assert_same_images(found, expected):
    assert found.keys() == expected.keys()
    assert expected
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def exported(nnunet, trainer, file):
    flags = ("-p", "tiny", "-c", "3d_fullres", "-tr", trainer, "-f", 0)
    nnunet.command("nnUNetv2_export_model_to_zip", "-d", PAIRS, "-o", file, *flags)
    return file


def test_an_exported_keeper_synthesises_as_its_folder(trained, tmp_path):
    file = exported(trained, KEEPER, tmp_path / "keeper.zip")
    scans = trained.base / "scans" / USUAL
    for name, model in {"zip": file, "folder": trained.fold(KEEPER, PAIRS).parent}.items():
        options = ("-m", model, "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar")
        scan = scans / "case_00.nii.gz"
        trained.rehrseg("synthesize", "-i", scan, "-o", tmp_path / name / "case_00.nii.gz", *options)
    assert_same_images(images_of(tmp_path / "zip"), images_of(tmp_path / "folder"))


@pytest.mark.parametrize("trainer", [TEACHER, KEEPER])
def test_an_exported_model_has_weights_plans_and_scores(trained, tmp_path, trainer):
    fold = trained.fold(trainer, PAIRS)
    with zipfile.ZipFile(exported(trained, trainer, tmp_path / "model.zip")) as content:
        names = {Path(name).name: name for name in content.namelist()}
        assert {FINAL_CHECKPOINT, "plans.json", "dataset.json", "summary.json"} <= names.keys()
        summary = json.loads(content.read(names["summary.json"]))
    assert summary["image_scores"] == json.loads((fold / REPORTS[trainer]).read_text())["mean"]


@pytest.fixture
def moved(paired):
    """The better scan of a case lies 9 mm off; it comes back afterwards."""
    file = paired.raw / paired.dataset(PAIRS) / "imagesTr" / "case_03_0001.nii.gz"
    kept = file.read_bytes()
    image = sitk.ReadImage(str(file))
    image.SetOrigin((*image.GetOrigin()[:2], image.GetOrigin()[2] + 9))
    sitk.WriteImage(image, str(file))
    yield paired
    file.write_bytes(kept)


def test_pairs_on_other_grids_are_not_trained_on(moved, one_step):
    """nnU-Net's planning and preprocessing have taken them as they are."""
    name = f"{TEACHER}_1epoch"
    with pytest.raises(ValueError, match=r"case_03_0001.nii.gz must have the voxels of .*case_03_0000.* 9 mm apart"):
        moved.train(name, PAIRS)
    assert not list(moved.fold(name, PAIRS).glob("checkpoint_*"))
    shutil.rmtree(moved.fold(name, PAIRS).parent)


def test_without_raw_scans_the_teacher_says_what_it_could_not_compare(moved, one_step, tmp_path):
    """Preprocessed data may have come from another machine."""
    with environment(nnUNet_raw=str(tmp_path)):
        fold = moved.train(f"{TEACHER}_1epoch", PAIRS)
    assert "the grids of the two scans are not compared: case_0" in log_of(fold)
    assert (fold / FINAL_CHECKPOINT).is_file()
    shutil.rmtree(fold.parent)  # keepers of one epoch would take it for their teacher


def test_a_pair_that_was_moved_within_its_grid_is_doubted(trained, one_step):
    """Its headers are right, its better scan is not."""
    case = json.loads((trained.plans(PAIRS).parent / "splits_final.json").read_text())[0]["train"][0]
    (file,) = trained.preprocessed.glob(f"{trained.dataset(PAIRS)}/*/{case}.b2nd")
    kept = file.read_bytes()
    values = np.asarray(blosc2.open(urlpath=str(file), mode="r")[:])
    values[1] = np.roll(values[1], 8, axis=2)
    blosc2.asarray(values, urlpath=str(file), mode="w")
    try:
        fold = trained.train(f"{TEACHER}_1epoch", PAIRS)
    finally:
        file.write_bytes(kept)
    doubts = [line for line in log_of(fold).splitlines() if "the edges of its two scans agree by" in line]
    assert [line.split("WARNING: ")[1].split(":")[0] for line in doubts] == [case]
    shutil.rmtree(fold.parent)


def trainer_of(nnunet, name):
    """Of fold 0, on the CPU."""
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(nnunet.dataset(PAIRS), "3d_fullres", 0, name, "tiny", device=torch.device("cpu"))


@pytest.fixture
def begun(trained):
    """Begin the training of a trainer; its folder is gone afterwards."""
    trainers = []

    def begin(name):
        trainers.append(trainer_of(trained, name))
        trainers[-1].on_train_start()
        trainers[-1].on_train_epoch_start()
        return trainers[-1]

    yield begin
    for trainer in trainers:
        shutil.rmtree(trainer.output_folder_base)


@pytest.mark.parametrize(
    ("variant", "parts", "residual"),
    [
        ("noMatching", {"distillation", "image", "adversarial"}, True),
        ("noFeatures", {"image", "adversarial"}, False),
        ("noResidual", {"distillation", "matching", "image", "adversarial"}, False),
    ],
)
def test_variants_lack_what_their_names_say(begun, variant, parts, residual):
    trainer = begun(f"{KEEPER}_{variant}")
    batch = next(trainer.dataloader_train)
    pairs, network = trainer.on_device(batch), trainer.network
    with torch.no_grad():
        features, output = trainer.teacher.network.features(pairs.privileged), network(pairs.source)
        scores = trainer.optimizer.adversary.scores(output.image)
        assert trainer.loss.parts(output, features, pairs.privileged, scores).keys() == parts
        losses = [trainer.loss(output, own, pairs.privileged, scores) for own in (features, [f + 1 for f in features])]
    assert torch.equal(*losses) == (variant == "noFeatures")
    assert (network.keeper.source_features is not None) == residual
    before = {name: p.clone() for name, p in network.named_parameters()}
    assert np.isfinite(trainer.train_step(batch)["loss"])
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("keeper.") for name in moved)
    assert not any(name.startswith((DECODER, "keeper.source_features.encoder.")) for name in moved)
    stored = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    settings = stored["configurations"]["3d_fullres"]["guidance"]["keeper"]
    assert (settings["matching_weight"] > 0, settings["distillation_weight"] > 0, settings["residual"]) == (
        "matching" in parts,
        "distillation" in parts,
        residual,
    )


@pytest.mark.parametrize("flags", [("--val", "--npz"), ("--val", "--val_best")])
def test_flags_of_the_validation(keeper_only, flags):
    """Images have no probabilities to keep; those of the best checkpoint are brighter by what was added to it."""
    fold = keeper_only.fold(KEEPER, PAIRS)
    final, files = images_of(fold / "validation"), {file.name for file in (fold / "validation").iterdir()}
    checkpoint = torch.load(fold / FINAL_CHECKPOINT, weights_only=False)
    checkpoint["network_weights"]["level.mean.bias"] += 1
    torch.save(checkpoint, fold / BEST_CHECKPOINT)
    keeper_only.train(KEEPER, PAIRS, *flags)
    assert {file.name for file in (fold / "validation").iterdir()} == files
    brighter = 1 if "--val_best" in flags else 0
    assert_same_images(images_of(fold / "validation"), {name: image + brighter for name, image in final.items()})


def test_a_training_without_checkpoints_leaves_images_and_scores(trained, one_step):
    name = f"{KEEPER}_1epoch"
    fold = trained.train(name, PAIRS, "--disable_checkpointing")
    assert not list(fold.glob("checkpoint_*"))
    scores = json.loads((fold / SYNTHESIS_REPORT).read_text())["cases"]
    assert list(images_of(fold / "validation")) == [f"{case}.nii.gz" for case in scores]
    with pytest.raises(FileNotFoundError, match=FINAL_CHECKPOINT):  # which export has nothing to export of
        exported(trained, name, fold.parent / "model.zip")
    shutil.rmtree(fold.parent)


def test_pretrained_weights_are_the_keepers_start_and_the_decoder_is_its_own_teachers(trained, one_step, tmp_path):
    checkpoint = torch.load(trained.fold(KEEPER, PAIRS) / FINAL_CHECKPOINT, weights_only=False)
    weights = checkpoint["network_weights"]
    given = {name: value + 0.25 if value.is_floating_point() else value for name, value in weights.items()}
    torch.save({**checkpoint, "network_weights": given}, tmp_path / "pretrained.pth")
    with trained.changed_plans(PAIRS) as changed:
        changed.plans["configurations"]["3d_fullres"]["guidance"]["learning_rate"] = 1e-9
        changed.write()
        fold = trained.train(f"{KEEPER}_1epoch", PAIRS, "-pretrained_weights", tmp_path / "pretrained.pth")
    found, teacher = weights_of(fold), weights_of(trained.fold(TEACHER, PAIRS))
    learnt = [name for name in found if name.startswith("keeper.") and ".source_features.encoder." not in name]
    assert learnt
    for name in learnt:
        torch.testing.assert_close(found[name], given[name], atol=1e-6, rtol=0)
    for name in (name for name in found if name.startswith(DECODER)):
        assert torch.equal(found[name], teacher[name])
    shutil.rmtree(fold.parent)


def test_a_keeper_gives_more_than_the_usual_scan_after_its_best_line(paired, monkeypatch):
    """On cases that it has not seen, and less than its teacher makes of the better scan itself."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net's loaders draw from it)
    monkeypatch.setenv(EPOCHS, "1")
    with paired.changed_plans(PAIRS) as changed:
        guidance = changed.plans["configurations"]["3d_fullres"]["guidance"]
        guidance.update({key: {**guidance[key], **QUICK[key]} if key in STAGES else QUICK[key] for key in QUICK})
        changed.write()
        for trainer, steps in STEPS_TO_LEARN.items():
            monkeypatch.setenv(STEPS, str(steps))
            fold = paired.train(f"{trainer}_2epochs", PAIRS)
    scores = {method: row["psnr"] for method, row in json.loads((fold / SYNTHESIS_REPORT).read_text())["mean"].items()}
    assert scores[SOURCE] + LEAST_GAIN_DB < scores[SYNTHESISED] < scores[RECONSTRUCTED]
