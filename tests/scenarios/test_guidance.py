"""From two folders of scans to synthesised better ones, through the commands: 3D with thick slices, and 2D."""

import json
import os
import pickle
import re
import shutil
from dataclasses import fields
from pathlib import Path

import faults
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import Command
from guided_runs import (
    BASELINE,
    FOLDS,
    GUIDED,
    USUAL,
    keeper_in,
    keepers_of_all_folds,
    prepare_usual,
    run_of,
    without,
)
from paired_phantom import PRIVILEGED, SOURCES, write_pair_folders
from short_runs import EPOCHS, PROGRESS, STEPS
from workspace import environment, log_of

from benchmarks.guidance import image_scores
from benchmarks.guidance import runs as benchmark_runs
from benchmarks.guidance.benchmark import GuidanceBenchmark
from benchmarks.guidance.image_table import image_table
from benchmarks.guidance.picture import write_picture
from benchmarks.guidance.rows import ROWS
from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.config.guidance import KEEPER_KEY, change_config, load_config
from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
from rehrseg_nnunet.guided.guided_network import guidance_of
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE, NoKeeperError
from rehrseg_nnunet.guided.report import RECONSTRUCTED, SOURCE, SYNTHESIS_REPORT, SYNTHESISED, TEACHER_REPORT
from rehrseg_nnunet.nnunet.fold_run import BEST_CHECKPOINT, FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.weights import hash_weights

pytestmark = pytest.mark.slow

PAIRS = 2
TEACHER, KEEPER = "GuidanceTeacherTrainer", "KnowledgeKeeperTrainer"
TIMEOUT_S = 300
CONFIGURATIONS = ("3d_fullres", "2d")
# by name, what each changes
VARIANTS_OF_GUIDED = {
    "scalarFusion": {"fusion": {"kind": "scalar"}},
    "sameLevel": {"fusion": {"guides": "same_level"}},
    "noRefinement": {"fusion": {"refinement": False}},
    "decoderOnly": {"fusion": {"kind": "decoder_only"}},
    "randomKeeper": {},
    "untaughtKeeper": {},
}


@pytest.fixture(scope="module")
def paired(nnunet):
    """A planned and preprocessed dataset of pairs with two source channels."""
    folders = nnunet.base / "scans"
    write_pair_folders(folders)
    sources = [part for name in SOURCES for part in ("--source", folders / name)]
    nnunet.rehrseg("pair", *sources, "--privileged", folders / PRIVILEGED, "-o", PAIRS, "-np", 1)
    nnunet.prepare(PAIRS, options=("--method", "guidance"))
    nnunet.preprocess(PAIRS, configurations=("2d",))
    return nnunet


@pytest.fixture(scope="module")
def trained(paired):
    """Teacher and keeper of fold 0 in both configurations; only the first draws `progress.png`, which is slow."""
    with environment(**{PROGRESS: "1"}):
        first = paired.train(TEACHER, PAIRS)
    assert (first / "progress.png").stat().st_size
    for trainer, configuration in ((KEEPER, "3d_fullres"), (TEACHER, "2d"), (KEEPER, "2d")):
        paired.train(trainer, PAIRS, configuration=configuration)
    return paired


@pytest.fixture(scope="module")
def usual(trained):
    """Scans of other subjects, who have no better ones, and a keeper of each fold."""
    prepare_usual(trained)
    keepers_of_all_folds(trained, PAIRS)
    return trained


@pytest.fixture
def keeper_only(trained):
    """Change the folds of both; they come back afterwards."""
    kept = trained.base / "kept"
    folds = [trained.fold(trainer, PAIRS) for trainer in (TEACHER, KEEPER)]
    for fold in folds:
        shutil.copytree(fold, kept / fold.parent.name)
    yield trained
    for fold in folds:
        shutil.rmtree(fold, ignore_errors=True)
        shutil.copytree(kept / fold.parent.name, fold)
    shutil.rmtree(kept)


def checkpoint_of(fold):
    return torch.load(fold / FINAL_CHECKPOINT, weights_only=False)


def validation_cases(nnunet):
    return json.loads((nnunet.plans(PAIRS).parent / "splits_final.json").read_text())[0]["val"]


def image_of(file):
    image = sitk.ReadImage(str(file))
    return image, sitk.GetArrayFromImage(image)


def synthesize(nnunet, source, target, *options, configuration="3d_fullres"):
    model = ["-d", PAIRS, "-p", "tiny", "-c", configuration, "-f", 0]
    machine = ["-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar"]
    nnunet.rehrseg("synthesize", "-i", source, "-o", target, *model, *machine, *options)


def source_scans(nnunet, folder):
    """The validation cases as new scans: their source channels, and nothing else."""
    folder.mkdir()
    for case in validation_cases(nnunet):
        for number, name in enumerate(SOURCES):
            shutil.copy(nnunet.base / "scans" / name / f"{case}.nii.gz", folder / f"{case}_{number:04d}.nii.gz")
    return folder


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_training_leaves_images_and_scores(trained, configuration):
    fold = trained.fold(KEEPER, PAIRS, configuration=configuration)
    cases = validation_cases(trained)
    assert sorted(file.name for file in (fold / "validation").glob("*.nii.gz")) == [f"{case}.nii.gz" for case in cases]
    for case in cases:
        image, values = image_of(fold / "validation" / f"{case}.nii.gz")
        scan, _ = image_of(trained.base / "scans" / PRIVILEGED / f"{case}.nii.gz")
        assert image.GetSize() == scan.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, get)() == pytest.approx(getattr(scan, get)(), abs=1e-5)
        assert np.isfinite(values).all()
        assert values.std() > 0.1
        assert (fold / f"synthesis_{case}.png").stat().st_size > 10_000
    report = json.loads((fold / SYNTHESIS_REPORT).read_text())
    assert list(report["mean"]) == [SOURCE, SYNTHESISED, RECONSTRUCTED]
    assert sorted(report["cases"]) == cases
    scores = [report["cases"][case][SYNTHESISED]["psnr"] for case in cases]
    assert report["mean"][SYNTHESISED]["psnr"] == pytest.approx(np.mean(scores))
    assert report["mean"][SOURCE]["psnr"] > 15
    teacher = json.loads((trained.fold(TEACHER, PAIRS, configuration=configuration) / TEACHER_REPORT).read_text())
    assert teacher["mean"][RECONSTRUCTED] == pytest.approx(report["mean"][RECONSTRUCTED], rel=1e-5)
    assert teacher["image_range"] == report["image_range"]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_new_scans_give_the_validations_images(trained, tmp_path, configuration):
    """So no privileged image went into these."""
    scans = source_scans(trained, tmp_path / "scans")
    synthesize(trained, scans, tmp_path / "out", configuration=configuration)
    folder = trained.fold(KEEPER, PAIRS, configuration=configuration) / "validation"
    for file in folder.glob("*.nii.gz"):
        image, values = image_of(tmp_path / "out" / file.name)
        expected, expected_values = image_of(file)
        np.testing.assert_allclose(values, expected_values, atol=1e-5)
        assert image.GetOrigin() == expected.GetOrigin()
    assert {file.name for file in folder.glob("*.nii.gz")} == {f.name for f in (tmp_path / "out").glob("*.nii.gz")}
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["model"]["trainer"] == KEEPER
    assert sorted(record["cases"]) == validation_cases(trained)


def test_one_scan_in_another_format(trained, tmp_path):
    case = validation_cases(trained)[0]
    scans = [trained.base / "scans" / name / f"{case}.nii.gz" for name in SOURCES]
    model = trained.fold(KEEPER, PAIRS).parent
    options = ["-m", model, "-device", "cpu", "--disable_progress_bar"]
    trained.rehrseg("synthesize", "-i", *scans, "-o", tmp_path / "better.nrrd", *options)
    _, values = image_of(tmp_path / "better.nrrd")
    np.testing.assert_allclose(values, image_of(model / "fold_0" / "validation" / f"{case}.nii.gz")[1], atol=1e-5)


def test_the_wrong_number_of_channels_is_named(trained, tmp_path, capsys):
    scan = trained.base / "scans" / "T1" / "case_00.nii.gz"
    model = ["-m", str(trained.fold(KEEPER, PAIRS).parent), "-device", "cpu"]
    assert main(["synthesize", "-i", str(scan), "-o", str(tmp_path / "a.nii.gz"), *model]) == 1
    assert "-i must name one file for each of the model's 2 channels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_is_no_keeper(trained, tmp_path, capsys):
    scans = source_scans(trained, tmp_path / "scans")
    model = ["-m", str(trained.fold(TEACHER, PAIRS).parent), "-device", "cpu"]
    assert main(["synthesize", "-i", str(scans), "-o", str(tmp_path / "out"), *model]) == 1
    assert f"must be a model of {KEEPER}, got one of {TEACHER}" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", [TEACHER, KEEPER])
def test_nnunet_predict_is_told_what_these_are(trained, tmp_path, trainer):
    (tmp_path / "in").mkdir()
    for number in range(3):
        shutil.copy(trained.base / "scans" / "T1" / "case_00.nii.gz", tmp_path / "in" / f"case_00_{number:04d}.nii.gz")
    instead = {TEACHER: "gives no segmentation", KEEPER: "use rehrseg synthesize"}
    with pytest.raises(NotImplementedError, match=f"^{trainer} .*{instead[trainer]}"):
        trained.predict(tmp_path / "in", tmp_path / "out", PAIRS, trainer=trainer)


def test_the_keeper_has_what_its_teacher_gave_it(trained):
    """Its decoder is the teacher's, which no step has moved; its checkpoint has no encoder."""
    teacher, keeper = (checkpoint_of(trained.fold(trainer, PAIRS))["network_weights"] for trainer in (TEACHER, KEEPER))
    decoder = {key: value for key, value in teacher.items() if key.startswith("decoder.")}
    assert decoder
    for key, value in decoder.items():
        assert torch.equal(keeper[key], value)
    torch.testing.assert_close(keeper["image_range"], teacher["image_range"])
    assert not any(key.startswith("encoder") for key in keeper)
    used = {key: value for key, value in teacher.items() if not key.startswith("reconstruction.")}
    assert bytes(keeper["teacher_sha256"].tolist()).hex() == hash_weights(used)
    assert hash_weights(used)[:12] in log_of(trained.fold(KEEPER, PAIRS))


def test_ssim_stands_for_the_dice(trained):
    for trainer in (TEACHER, KEEPER):
        log = checkpoint_of(trained.fold(trainer, PAIRS))["logging"]
        assert log["mean_fg_dice"] == pytest.approx(log["ssim"])
        assert [row[0] for row in log["dice_per_class_or_region"]] == pytest.approx(log["ssim"])
        assert len(log["psnr"]) == 2
        assert "where nnU-Net says pseudo Dice, here it is their SSIM" in log_of(trained.fold(trainer, PAIRS))
    assert len(log["feature_error"]) == len(log["matching_error"]) == 2


@pytest.fixture
def repeatable(monkeypatch):
    """Networks start with the same weights, and epochs have the same batches whatever came before."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    initialize, start = nnUNetTrainer.initialize, nnUNetTrainer.on_train_epoch_start

    def seeded_initialize(self):
        torch.manual_seed(0)
        initialize(self)

    def seeded_start(self):
        torch.manual_seed(self.current_epoch)
        np.random.seed(self.current_epoch)  # noqa: NPY002 (nnU-Net's loaders draw from it)
        start(self)

    monkeypatch.setattr(nnUNetTrainer, "initialize", seeded_initialize)
    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", seeded_start)


def interrupt_after(epoch, patch):
    """Ctrl-C when the steps of an epoch are done."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = nnUNetTrainer.on_train_epoch_end

    def on_train_epoch_end(self, train_outputs):
        if self.current_epoch == epoch:
            faults.interrupt()
        stock(self, train_outputs)

    patch.setattr(nnUNetTrainer, "on_train_epoch_end", on_train_epoch_end)


@pytest.mark.parametrize("trainer", [TEACHER, KEEPER])
def test_stopped_and_continued_as_if_never_stopped(keeper_only, monkeypatch, repeatable, trainer):
    """Weights, all optimisers' states and everything in the log."""
    fold = keeper_only.fold(trainer, PAIRS)
    monkeypatch.setenv(EPOCHS, "3")
    shutil.rmtree(fold)
    keeper_only.train(trainer, PAIRS)
    whole = checkpoint_of(fold)
    shutil.rmtree(fold)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            keeper_only.train(trainer, PAIRS)
    assert not (fold / FINAL_CHECKPOINT).exists()
    keeper_only.train(trainer, PAIRS, "--c")
    stopped = checkpoint_of(fold)
    assert hash_weights(stopped["network_weights"]) == hash_weights(whole["network_weights"])
    assert_equal(stopped["optimizer_state"], whole["optimizer_state"])
    for metric in ("train_losses", "val_losses", "psnr", "ssim", "lrs"):
        np.testing.assert_array_equal(stopped["logging"][metric], whole["logging"][metric])


def assert_equal(found, expected):
    """Nested dicts and lists with tensors."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            assert_equal(*pair)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_another_teacher_cannot_take_over(keeper_only):
    """Neither with --c nor, unnoticed, in the report."""
    teacher, keeper = (keeper_only.fold(trainer, PAIRS) for trainer in (TEACHER, KEEPER))
    (keeper / FINAL_CHECKPOINT).rename(keeper / BEST_CHECKPOINT)
    checkpoint = checkpoint_of(teacher)
    checkpoint["network_weights"]["encoder.blocks.0.0.weight"] += 1
    torch.save(checkpoint, teacher / FINAL_CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint_final.pth must be the teacher that this training was begun with"):
        keeper_only.train(KEEPER, PAIRS, "--c")
    (keeper / BEST_CHECKPOINT).rename(keeper / FINAL_CHECKPOINT)
    keeper_only.train(KEEPER, PAIRS, "--val")
    assert list(json.loads((keeper / SYNTHESIS_REPORT).read_text())["mean"]) == [SOURCE, SYNTHESISED]
    assert "is another teacher now" in log_of(keeper)


def test_the_keeper_stands_alone_but_is_not_trained_alone(keeper_only, tmp_path):
    teacher, keeper = (keeper_only.fold(trainer, PAIRS) for trainer in (TEACHER, KEEPER))
    shutil.rmtree(teacher)
    before = (keeper / "validation" / f"{validation_cases(keeper_only)[0]}.nii.gz").read_bytes()
    keeper_only.train(KEEPER, PAIRS, "--val")
    assert list(json.loads((keeper / SYNTHESIS_REPORT).read_text())["mean"]) == [SOURCE, SYNTHESISED]
    assert (keeper / "validation" / f"{validation_cases(keeper_only)[0]}.nii.gz").read_bytes() == before
    command = f"nnUNetv2_train {keeper_only.dataset(PAIRS)} 3d_fullres 0 -tr {TEACHER} -p tiny"
    with pytest.raises(FileNotFoundError, match=f"the teacher of this fold is not finished; run: {command}$"):
        keeper_only.train(KEEPER, PAIRS)


def built(nnunet, name):
    """A trainer of fold 0 that has begun, and a batch for it."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(nnunet.dataset(PAIRS), "3d_fullres", 0, name, "tiny", device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer, next(trainer.dataloader_train)


def test_frozen_is_frozen(keeper_only):
    """The teacher in the keeper's training: no weight moves, none has a gradient."""
    trainer, batch = built(keeper_only, KEEPER)
    teacher, keeper = trainer.teacher.network, trainer.network
    before = hash_weights(teacher.state_dict()), hash_weights(keeper.decoder.state_dict())
    weights = hash_weights(keeper.keeper.state_dict())
    for _ in range(3):
        trainer.train_step(batch)
    assert (hash_weights(teacher.state_dict()), hash_weights(keeper.decoder.state_dict())) == before
    assert before[0] == trainer.teacher.sha256
    assert hash_weights(keeper.keeper.state_dict()) != weights
    for parameter in (*teacher.parameters(), *keeper.decoder.parameters()):
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not teacher.training
    assert not keeper.decoder.training
    assert keeper.keeper.training


def test_noise_is_in_training_alone(keeper_only):
    trainer, batch = built(keeper_only, TEACHER)
    privileged = trainer.on_device(batch).privileged
    first, second = (trainer.network(privileged).image for _ in range(2))
    assert not torch.equal(first, second)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        first, second = (trainer.validation_step(batch) for _ in range(2))
    assert first == second


def test_ranks_train_together(trained, usual, tmp_path):
    """Equal networks and adversaries after every step, from other starts and batches; each case is written once."""
    fold = "1"
    arguments = [2, tmp_path, trained.dataset(PAIRS), trained.dataset(USUAL), "tiny", fold]
    processes = [Command("ddp_guidance:main", rank, *arguments, output=tmp_path / f"{rank}.txt") for rank in range(2)]
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [len(set(map(tuple, hashes))) for hashes in first.values()] == [4, 4, 4]
    assert len(first[KEEPER][0]) == 2
    folder = trained.fold(KEEPER, PAIRS, fold=fold)
    cases = json.loads((trained.plans(PAIRS).parent / "splits_final.json").read_text())[1]["val"]
    assert sorted(json.loads((folder / SYNTHESIS_REPORT).read_text())["cases"]) == cases
    assert sorted(file.name for file in (folder / "validation").glob("*.nii.gz")) == [
        f"{case}.nii.gz" for case in cases
    ]


def test_variants_train(trained, monkeypatch):
    """A keeper of a variant's teacher, all cases, other lengths."""
    with environment(**{EPOCHS: "1"}):
        teacher = trained.train(f"{TEACHER}_noFeatureReconstruction_1epoch", PAIRS, fold="all")
        trained.train(f"{TEACHER}_noNoise_1epoch", PAIRS)
        monkeypatch.setenv(TEACHER_VARIABLE, str(teacher))
        for variant in ("noAdversary", "noRecalibration"):
            keeper = trained.train(f"{KEEPER}_{variant}_1epoch", PAIRS)
            assert f"teacher: {teacher / FINAL_CHECKPOINT}" in log_of(keeper)
    assert "reconstruction" not in " ".join(checkpoint_of(teacher)["network_weights"])
    assert checkpoint_of(trained.fold(f"{KEEPER}_noAdversary_1epoch", PAIRS))["optimizer_state"]["adversary"] is None
    assert not any("recalibration" in key for key in checkpoint_of(keeper)["network_weights"])


def test_plans_without_a_block_will_do(trained):
    """The defaults, as nnU-Net's own plans give them."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(
        trained.dataset(PAIRS), "3d_fullres", 0, TEACHER, "nnUNetPlans", device=torch.device("cpu")
    )
    assert trainer.num_epochs == 100
    assert trainer.config.base_features == 8
    shutil.rmtree(Path(trainer.output_folder_base))


@pytest.fixture
def benchmark(trained, monkeypatch):
    """The trainings as a benchmark finds them, whose own trainers nnU-Net knows."""
    folders = [os.environ["nnUNet_extTrainer"], *map(str, benchmark_runs.TRAINERS)]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(folders))
    settings = dict.fromkeys(field.name for field in fields(GuidanceBenchmark))
    named = {"work": trained.base, "source": Path("Dataset001_Any"), "number": PAIRS, "plans": "tiny"}
    return GuidanceBenchmark(**{**settings, **named, "keeper": "keeper"})


def test_a_benchmark_scores_what_the_commands_have_trained(trained, benchmark, tmp_path):
    fold = trained.train("L1UNetTrainer", PAIRS)
    keepers = trained.fold(KEEPER, PAIRS)
    for folder in (".", "validation"):
        names = [{file.name for file in (own / folder).iterdir() if file.suffix != ".txt"} for own in (fold, keepers)]
        assert names[0] == names[1]
    images = {"teacher": RECONSTRUCTED, "keeper": SYNTHESISED, "l1_unet": SYNTHESISED}
    runs = [benchmark_runs.Run(benchmark, ROWS[key], 0) for key in images]
    for run, image in zip(runs, images.values(), strict=True):
        assert run.finished
        image_scores.score(run)
        found = json.loads(run.scores.read_text())["cases"]
        expected = json.loads(run.report.read_text())["cases"]
        assert found.keys() == expected.keys()
        for case, scored in expected.items():
            distances = [found[case][image][name] for name in ("feature_error", "guide_error")]
            assert min(distances) > 0
            assert (distances[0] != distances[1]) == (image == SYNTHESISED and run.row.key == "keeper")
            for metric, value in scored[image].items():
                assert found[case][image][metric] == pytest.approx(value, rel=1e-4)
    rows = image_table(runs).rows
    assert len(rows) == 4
    assert all(cell.markdown for row in rows.values() for name, cell in row.items() if name != "cpu_s")
    write_picture(runs, tmp_path / "case.png")
    assert (tmp_path / "case.png").stat().st_size > 10_000


def test_true_guides_are_of_the_better_scan_which_the_network_does_not_see(trained, benchmark):
    with environment(**{EPOCHS: "1", STEPS: "1"}):
        fold = trained.train("GuidedTrainer_trueGuides", PAIRS)
    weights = checkpoint_of(fold)["network_weights"]
    teacher = checkpoint_of(trained.fold(TEACHER, PAIRS))["network_weights"]
    guides = {name.split("keeper.")[1]: value for name, value in weights.items() if ".guidance.keeper." in name}
    assert guides.keys() == {name for name in teacher if name.startswith("encoder.")}
    assert all(torch.equal(value, teacher[name]) for name, value in guides.items())
    assert weights["encoder.stages.0.0.convs.0.conv.weight"].shape[1] == len(SOURCES)
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]


@pytest.fixture(scope="module")
def guided(usual):
    """A baseline of fold 0, and guided networks of all folds in 3D and of one in 2D."""
    with environment(**{EPOCHS: "1", STEPS: "1"}):
        usual.train(BASELINE, USUAL)
        for fold in FOLDS:
            usual.train(GUIDED, USUAL, "--npz", fold=fold)
        usual.train(GUIDED, USUAL, configuration="2d")
    return usual


def usual_cases(nnunet, fold=0):
    return json.loads((nnunet.plans(USUAL).parent / "splits_final.json").read_text())[fold]["val"]


def usual_scans(nnunet, folder, cases):
    """As new scans."""
    folder.mkdir()
    for case in cases:
        for file in (nnunet.raw / nnunet.dataset(USUAL) / "imagesTr").glob(f"{case}_*"):
            shutil.copy(file, folder)
    return folder


def labels_of(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def assert_same_labels(folder, expected):
    files = sorted(expected.glob("*.nii.gz"))
    assert [file.name for file in sorted(folder.glob("*.nii.gz"))] == [file.name for file in files]
    for file in files:
        np.testing.assert_array_equal(labels_of(folder / file.name), labels_of(file))


@pytest.mark.parametrize("fold", FOLDS)
def test_every_fold_has_its_keeper(guided, fold):
    """As it was: no step has moved it."""
    folder, keeper = guided.fold(GUIDED, USUAL, fold=fold), guided.fold(KEEPER, PAIRS, fold=fold)
    weights = keeper_in(checkpoint_of(folder)["network_weights"])
    assert_equal(weights, keeper_in(checkpoint_of(keeper)["network_weights"], prefix="keeper."))
    log = log_of(folder)
    assert f"keeper: {keeper / FINAL_CHECKPOINT} (weights {hash_weights(weights)[:12]})" in log
    start = f"training starts from {guided.fold(BASELINE, USUAL)}" if fold == "0" else "training starts from scratch"
    assert start in log
    stored = checkpoint_of(folder)["init_args"]["plans"]["configurations"]["3d_fullres"]["guidance_keeper"]
    assert (stored["run"], stored["sha256"]) == (run_of(keeper), hash_weights(weights))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_guided_folder_alone_predicts(guided, tmp_path, configuration):
    """Neither pairs nor teacher nor keeper are there: nnU-Net's validation comes back.

    In 2D by both commands; in 3D slices are thick, and `rehrseg predict` decides their labels on thin ones.
    """
    scans = usual_scans(guided, tmp_path / "scans", usual_cases(guided))
    options = {"trainer": GUIDED, "configuration": configuration}
    with without(guided, PAIRS):
        guided.predict(scans, tmp_path / "stock", USUAL, **options)
        guided.predict_hr(scans, tmp_path / "own", USUAL, "--grid", "native", **options)
    folder = guided.fold(GUIDED, USUAL, configuration=configuration)
    assert np.unique(labels_of(next((folder / "validation").glob("*.nii.gz")))).size > 1
    assert_same_labels(tmp_path / "stock", folder / "validation")
    if configuration == "2d":
        assert_same_labels(tmp_path / "own", folder / "validation")
    assert len(list((tmp_path / "own").glob("*.nii.gz"))) == len(usual_cases(guided))


def test_five_folds_with_five_keepers(guided, tmp_path, monkeypatch):
    """One model as nnU-Net knows it: cross-validation, ensemble, and a zip file that predicts the same elsewhere."""
    flags = ("-p", "tiny", "-c", "3d_fullres", "-tr", GUIDED)
    guided.command("nnUNetv2_find_best_configuration", USUAL, *flags, "-np", 1)
    best = json.loads((guided.results / guided.dataset(USUAL) / "inference_information.json").read_text())
    assert list(best["all_results"]) == [f"{GUIDED}__tiny__3d_fullres"]
    scans = usual_scans(guided, tmp_path / "scans", usual_cases(guided)[:1])
    options = {"trainer": GUIDED, "folds": FOLDS}
    guided.predict(scans, tmp_path / "all", USUAL, "--save_probabilities", **options)
    expected = []
    for fold in FOLDS:
        folder = guided.predict(scans, tmp_path / fold, USUAL, "--save_probabilities", trainer=GUIDED, folds=(fold,))
        expected.append(np.load(next(folder.glob("*.npz")))["probabilities"])
    assert not np.allclose(expected[1], expected[2])
    together = np.exp(np.mean(np.log(expected), axis=0))  # nnU-Net's mean is of logits
    together /= together.sum(axis=0)
    found = np.load(next((tmp_path / "all").glob("*.npz")))["probabilities"]
    np.testing.assert_allclose(found, together, atol=1e-3)
    guided.command("nnUNetv2_export_model_to_zip", "-d", USUAL, "-o", tmp_path / "model.zip", *flags)
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    guided.command("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    guided.predict(scans, tmp_path / "again", USUAL, **options)
    assert_same_labels(tmp_path / "again", tmp_path / "all")


@pytest.fixture
def guided_only(guided):
    """Change fold 0; it comes back afterwards."""
    fold = guided.fold(GUIDED, USUAL)
    kept = guided.base / "kept"
    shutil.copytree(fold, kept)
    yield guided
    shutil.rmtree(fold)
    kept.rename(fold)


def test_guided_stopped_and_continued_as_if_never_stopped(guided_only, monkeypatch, repeatable):
    """Without the keeper's training, which is not looked for any more."""
    fold = guided_only.fold(GUIDED, USUAL)
    monkeypatch.setenv(EPOCHS, "2")
    shutil.rmtree(fold)
    guided_only.train(GUIDED, USUAL)
    whole = checkpoint_of(fold)
    shutil.rmtree(fold)
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            guided_only.train(GUIDED, USUAL)
    with without(guided_only, PAIRS):
        guided_only.train(GUIDED, USUAL, "--c")
    stopped = checkpoint_of(fold)
    assert hash_weights(stopped["network_weights"]) == hash_weights(whole["network_weights"])
    assert_equal(stopped["optimizer_state"], whole["optimizer_state"])
    for metric in ("train_losses", "val_losses", "lrs"):
        np.testing.assert_array_equal(stopped["logging"][metric], whole["logging"][metric])


def guided_trainer(nnunet, name=GUIDED, *, start=True, fold=0):
    """Begun, if nothing else is said."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(nnunet.dataset(USUAL), "3d_fullres", fold, name, "tiny", device=torch.device("cpu"))
    if start:
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    return trainer


def test_it_starts_as_the_baseline_and_the_keeper_stays(guided_only):
    trainer = guided_trainer(guided_only)
    baseline = guided_trainer(guided_only, "ContinuedBaselineTrainer")
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        for own, expected in zip(trainer.network(batch["data"]), baseline.network(batch["data"]), strict=True):
            assert torch.equal(own, expected)
    shutil.rmtree(baseline.output_folder_base)
    guidance = guidance_of(trainer.network)
    keeper, others = guidance.keeper, {n: p.clone() for n, p in trainer.network.named_parameters() if p.requires_grad}
    before = hash_weights(keeper.state_dict())
    for _ in range(3):
        trainer.train_step(batch)
    assert hash_weights(keeper.state_dict()) == before == trainer.keeper.resolved.sha256
    assert all(p.grad is None and not p.requires_grad for p in keeper.parameters())
    assert not keeper.training
    still = {n for n, p in trainer.network.named_parameters() if p.requires_grad and torch.equal(p, others[n])}
    # nnU-Net gives the loss of the coarsest output no weight, and a gate's ReLU may be shut
    assert [n for n in sorted(still) if "seg_layers.0." not in n and ".refinement." not in n] == []


def test_it_starts_from_scratch_if_the_settings_say_so(guided_only):
    trainer = guided_trainer(guided_only, start=False)
    assert trainer.baseline_checkpoint() is not None
    assert trainer.without_baseline.endswith("guidance.fusion.start paper learns faster from there")
    trainer.guidance = trainer.guidance.model_copy(update={"from_baseline": False})
    trainer.configure()
    trainer.start_from_trained()
    assert trainer.initial_lr == 1e-2
    assert "from_baseline is false: training starts from scratch" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("variant", sorted(VARIANTS_OF_GUIDED))
def test_variants_of_guided_train_with_what_they_name(guided, variant):
    trainer = guided_trainer(guided, f"{GUIDED}_{variant}")
    try:
        parent = load_config(json.loads(guided.plans(USUAL).read_text())["configurations"]["3d_fullres"])
        assert trainer.guidance == change_config(parent, VARIANTS_OF_GUIDED[variant])
        keeper = guidance_of(trainer.network).keeper
        batch, before = next(trainer.dataloader_train), hash_weights(keeper.state_dict())
        for _ in range(2):
            assert np.isfinite(trainer.train_step(batch)["loss"])
        assert (hash_weights(keeper.state_dict()) == before) == (variant != "untaughtKeeper")
        taught = keeper_in(checkpoint_of(guided.fold(KEEPER, PAIRS))["network_weights"], prefix="keeper.")
        control = variant in ("untaughtKeeper", "randomKeeper")
        assert {name: w.shape for name, w in keeper.state_dict().items()} == {n: w.shape for n, w in taught.items()}
        assert (before == hash_weights(taught)) == (not control)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / FINAL_CHECKPOINT))
        again = guided_trainer(guided, f"{GUIDED}_{variant}", start=False)
        again.load_checkpoint(str(Path(trainer.output_folder) / FINAL_CHECKPOINT))
        assert hash_weights(again.network.state_dict()) == hash_weights(trainer.network.state_dict())
    finally:
        shutil.rmtree(trainer.output_folder_base)


def test_pretrained_weights(guided):
    """Of a plain network and of a guided one: neither brings a keeper, which the training has found itself."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    taught = keeper_in(checkpoint_of(guided.fold(KEEPER, PAIRS))["network_weights"], prefix="keeper.")
    for source in (BASELINE, GUIDED):
        trainer = guided_trainer(guided, f"{GUIDED}_1epoch", start=False)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(guided.fold(source, USUAL, fold="0") / FINAL_CHECKPOINT))
        trainer.on_train_start()
        log = log_of(Path(trainer.output_folder))
        assert "training starts from -pretrained_weights" in log
        assert "fusion starts anew" in log
        assert_equal(dict(guidance_of(trainer.network).keeper.state_dict()), taught)
        shutil.rmtree(trainer.output_folder_base)


def test_settings_that_changed_since_the_checkpoint_are_named(guided):
    """Before torch refuses the network's weights one by one."""
    name = f"{GUIDED}_1epoch"
    begun = guided_trainer(guided, name)
    file = Path(begun.output_folder) / "checkpoint_latest.pth"
    try:
        begun.save_checkpoint(str(file))
        with guided.changed_plans(USUAL) as changed:
            changed.plans["configurations"]["3d_fullres"]["guidance"]["fusion"] = {"hidden": 1.0}
            changed.write()
            trainer = guided_trainer(guided, name, start=False)
            with pytest.raises(ValueError, match=r"guidance\.fusion\.hidden was 0\.25 and is 1\.0; put back what"):
                trainer.load_checkpoint(str(file))
    finally:
        shutil.rmtree(begun.output_folder_base)


def test_a_training_says_what_may_make_its_guidance_worse(guided):
    """Patches of another size in mm, and scans that lie otherwise."""
    name, plans = f"{GUIDED}_1epoch", guided.plans(PAIRS)
    first = min((plans.parent / "nnUNetPlans_3d_fullres").glob("*.pkl"))
    kept = first.read_bytes()
    try:
        with guided.changed_plans(USUAL) as changed:
            changed.plans["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]
            changed.write()
            turned = pickle.loads(kept)
            turned["sitk_stuff"]["direction"] = (1, 0, 0, 0, 0, 1, 0, 1, 0)
            first.write_bytes(pickle.dumps(turned))
            trainer = guided_trainer(guided, name, start=False)
            trainer.initialize()
        log = log_of(Path(trainer.output_folder))
        assert "WARNING: axes of the scans lead to" in log
        assert re.search("WARNING: patches of .* mm are guided by a keeper of", log)
    finally:
        first.write_bytes(kept)
        shutil.rmtree(guided.fold(name, USUAL).parent, ignore_errors=True)


def test_a_teacher_that_knows_a_validation_case_is_refused(guided):
    """Fold 2's keeper, which does not know it, was taught by fold 0's teacher."""
    file = guided.plans(PAIRS).parent / "splits_final.json"
    original, case = file.read_text(), usual_cases(guided, fold=2)[0]
    splits = json.loads(original)
    splits[0]["train"].append(case)
    file.write_text(json.dumps(splits))
    try:
        with pytest.raises(ValueError, match=rf"must be new to the keeper's teacher, but it was trained on {case} \("):
            guided_trainer(guided, f"{GUIDED}_1epoch", start=False, fold=2).initialize()
    finally:
        file.write_text(original)
        shutil.rmtree(guided.fold(f"{GUIDED}_1epoch", USUAL).parent)


def test_a_keeper_that_knows_a_validation_case_is_refused(guided):
    """Unless the settings say that they are other subjects; a control of random weights knows nobody."""
    file = guided.plans(PAIRS).parent / "splits_final.json"
    original, case = file.read_text(), usual_cases(guided)[0]
    splits = json.loads(original)
    splits[0]["train"].append(case)
    file.write_text(json.dumps(splits))
    name = f"{GUIDED}_1epoch"
    try:
        with pytest.raises(ValueError, match=rf"it was trained on {case} \(.*; choose REHRSEG_KEEPER=.*fold_1;"):
            guided_trainer(guided, name, start=False).initialize()
        guided_trainer(guided, f"{GUIDED}_randomKeeper", start=False).initialize()
        with guided.changed_plans(USUAL) as changed:
            changed.plans["configurations"]["3d_fullres"]["guidance"]["keeper"]["other_subjects"] = True
            changed.write()
            guided_trainer(guided, name, start=False).initialize()
    finally:
        file.write_text(original)
        for trainer in (name, f"{GUIDED}_randomKeeper"):
            shutil.rmtree(guided.fold(trainer, USUAL).parent)


def test_a_fold_with_another_kind_of_keeper_is_refused(guided, monkeypatch):
    """It would make the plans unfit for the folds that are there."""
    keeper = guided.fold(KEEPER, PAIRS)
    other = keeper.parents[1] / f"{KEEPER}_noRecalibration_9epochs__tiny__3d_fullres" / "fold_0"
    other.mkdir(parents=True)
    plans = json.loads((keeper.parent / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["guidance"]["keeper"]["recalibration"] = False
    (other.parent / "plans.json").write_text(json.dumps(plans))
    shutil.copy(keeper.parent / "dataset.json", other.parent)
    checkpoint = checkpoint_of(keeper)
    weights = checkpoint["network_weights"]
    checkpoint["network_weights"] = {n: value for n, value in weights.items() if "recalibration" not in n}
    torch.save(checkpoint, other / FINAL_CHECKPOINT)
    monkeypatch.setenv(KEEPER_VARIABLE, str(other))
    before = (guided.fold(GUIDED, USUAL).parent / "plans.json").read_text()
    with pytest.raises(ValueError, match=r"plans.json is that of fold_1, fold_2, .* but recalibration differs"):
        guided_trainer(guided)
    assert (guided.fold(GUIDED, USUAL).parent / "plans.json").read_text() == before
    shutil.rmtree(other.parent)


def test_no_checkpoint_is_saved_beside_plans_of_another_network(guided):
    """Another fold, which began at the same time, has written them."""
    trainer = guided_trainer(guided, f"{GUIDED}_1epoch")
    file, checkpoint = Path(trainer.output_folder_base) / "plans.json", Path(trainer.output_folder) / FINAL_CHECKPOINT
    try:
        plans = json.loads(file.read_text())
        plans["configurations"]["3d_fullres"][KEEPER_KEY]["recalibration"] = False
        file.write_text(json.dumps(plans))
        with pytest.raises(ValueError, match=r"written by another fold since this one began, .* recalibration differs"):
            trainer.save_checkpoint(str(checkpoint))
        assert not list(checkpoint.parent.glob("checkpoint_*"))
    finally:
        shutil.rmtree(trainer.output_folder_base)


def test_controls_need_no_keeper(guided):
    """Its architecture is that of this dataset's own plans then; all others name the commands."""
    with without(guided, PAIRS):
        trainer = guided_trainer(guided, f"{GUIDED}_randomKeeper")
        assert guidance_of(trainer.network).keeper.shape.source_channels == 2
        assert "built by this dataset's plans" in log_of(Path(trainer.output_folder))
        shutil.rmtree(trainer.output_folder_base)
        with pytest.raises(
            NoKeeperError, match=r"nnUNetv2_train PAIRS 3d_fullres 0 -tr KnowledgeKeeperTrainer -p tiny"
        ):
            guided.train(f"{GUIDED}_sameLevel", USUAL)
        shutil.rmtree(guided.fold(f"{GUIDED}_sameLevel", USUAL).parent)
