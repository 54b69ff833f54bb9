"""Both methods in one network: REHRSeg, guided by what thin slices would have shown, through the commands."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from guided_runs import keeper_in, run_of, without
from workspace import assert_same_field_of_view, log_of, workspace

from rehrseg_nnunet.cases.phantom import write_phantom_dataset
from rehrseg_nnunet.guided.guided_network import guidance_of
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
from rehrseg_nnunet.guided.level_restoration import patch_level, standardise
from rehrseg_nnunet.guided.resolved_keeper import KEEPER_KEY
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.segmentation.hr_network import output_mode

pytestmark = pytest.mark.slow

FACTOR = 4
ISOTROPIC, THICK, OTHERS, OTHERS_THICK, PAIRS = range(1, 6)
KEEPER, BOTH = "KnowledgeKeeperTrainer", "GuidedREHRSegTrainer"
INPUTS = ("thick", "thin")


def interpolate(file, grid, target):
    """Thick slices on the grid of thin ones, as docs/how-to/guided.md says."""
    thick, thin = sitk.ReadImage(str(file), sitk.sitkFloat32), sitk.ReadImage(str(grid))
    target.parent.mkdir(exist_ok=True)
    resample = sitk.ResampleImageFilter()
    resample.SetReferenceImage(thin)
    resample.SetInterpolator(sitk.sitkBSpline)
    resample.UseNearestNeighborExtrapolatorOn()  # the outer thin slices lie beyond the centres of the outer thick ones
    sitk.WriteImage(resample.Execute(thick), str(target))


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """Thick slices with labels, and, of other subjects, thick and thin ones."""
    with workspace(tmp_path_factory.mktemp("nnunet")) as folders:
        folders.write_phantom(ISOTROPIC)
        folders.simulate(ISOTROPIC, THICK, factor=FACTOR)
        folders.prepare(THICK, options=("--method", "both"))
        folders.rehrseg("plan", "-d", THICK, "--preset", "demo", "--method", "both", "--input", "thin", "-o", "thin")
        write_phantom_dataset(folders.raw / f"Dataset{OTHERS:03d}_Others", cases=5, shape=(16, 24, 24), seed=9)
        folders.simulate(OTHERS, OTHERS_THICK, factor=FACTOR)
        thin = folders.raw / folders.dataset(OTHERS) / "imagesTr"
        for number, file in enumerate(sorted(thin.glob("*.nii.gz"))):
            thick = folders.raw / folders.dataset(OTHERS_THICK) / "imagesTr" / file.name
            interpolate(thick, file, folders.base / "MRI" / f"other_{number}.nii.gz")
            (folders.base / "thin").mkdir(exist_ok=True)
            shutil.copy(file, folders.base / "thin" / f"other_{number}.nii.gz")
        pair = ["--source", folders.base / "MRI", "--privileged", folders.base / "thin", "-o", PAIRS, "-np", 1]
        folders.rehrseg("pair", *pair)
        folders.prepare(PAIRS, options=("--method", "guidance"))
        yield folders


@pytest.fixture(scope="module")
def trained(nnunet):
    """Everything for fold 0; the stage 1 of plans `tiny` serves both."""
    for trainer in ("GuidanceTeacherTrainer", KEEPER):
        nnunet.train(trainer, PAIRS)
    for trainer in ("nnUNetTrainer", "SelfSRTrainer", BOTH):
        nnunet.train(trainer, THICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REHRSEG_SELF_SR", str(nnunet.fold("SelfSRTrainer", THICK)))
        nnunet.train(BOTH, THICK, plans="thin")
    return nnunet


def plans_of(mode):
    return "thin" if mode == "thin" else "tiny"


def fold_of(nnunet, mode):
    return nnunet.fold(BOTH, THICK, plans=plans_of(mode))


def kept_plans(nnunet, mode):
    return json.loads((fold_of(nnunet, mode).parent / "plans.json").read_text())["configurations"]["3d_fullres"]


@pytest.fixture
def begin(trained, monkeypatch):
    """Trainers of fold 0 that have begun; what they write goes again."""
    from nnunetv2.run.run_training import get_trainer_from_args

    monkeypatch.setenv("REHRSEG_SELF_SR", str(trained.fold("SelfSRTrainer", THICK)))
    begun = []

    def start(mode, trainer=BOTH):
        arguments = trained.dataset(THICK), "3d_fullres", 0, f"{trainer}_1epoch", plans_of(mode)
        begun.append(get_trainer_from_args(*arguments, device=torch.device("cpu")))
        begun[-1].on_train_start()
        begun[-1].on_train_epoch_start()
        return begun[-1]

    yield start
    for trainer in begun:
        shutil.rmtree(trainer.output_folder_base)


@pytest.mark.parametrize("mode", INPUTS)
def test_the_model_holds_the_keeper_and_says_how_it_is_built(trained, mode):
    keeper = trained.fold(KEEPER, PAIRS)
    taught = torch.load(keeper / FINAL_CHECKPOINT, weights_only=False)["network_weights"]
    weights = torch.load(fold_of(trained, mode) / FINAL_CHECKPOINT, weights_only=False)["network_weights"]
    (prefix,) = {name.split(".guidance.keeper.")[0] for name in weights if ".guidance.keeper." in name}
    held, expected = keeper_in(weights, prefix=f"{prefix}.guidance.keeper."), keeper_in(taught, prefix="keeper.")
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)
    plans = kept_plans(trained, mode)
    assert run_of(keeper) in plans[KEEPER_KEY]["run"]
    assert plans["rehrseg"]["segmentation"]["input"] == mode
    blocks = plans["guidance"], plans["rehrseg"]["segmentation"]
    assert [block["learning_rate_from_trained"] for block in blocks] == [0.005, 0.005]  # the demo preset's


def test_of_thick_slices_it_starts_from_the_baseline_of_thin_ones_from_scratch(trained):
    assert f"training starts from {trained.fold('nnUNetTrainer', THICK)}" in log_of(fold_of(trained, "thick"))
    assert "no baseline fits thin slices" in log_of(fold_of(trained, "thin"))
    starts = [kept_plans(trained, mode)["guidance"]["fusion"]["start"] for mode in INPUTS]
    assert starts == ["identity", "paper"]  # what learns faster from there


def test_the_keeper_sees_thin_slices_whatever_the_network_sees(trained):
    """Thick slices are drawn to the keeper's grid, interpolated ones are on it."""
    views = [kept_plans(trained, mode)[KEEPER_KEY]["view"]["spacing_ratio"] for mode in INPUTS]
    assert views == [[FACTOR, 1.0, 1.0], []]


def test_it_sees_what_it_was_taught_with(trained, begin):
    """The network's interpolation of a thick scan is the pairs' source."""
    network = begin("thin").network
    for number in range(3):
        scan = trained.raw / trained.dataset(OTHERS_THICK) / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz"
        image = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(scan))).astype(np.float32))
        seen = network.interpolation(image[None, None])[0, 0].numpy()
        source = sitk.GetArrayFromImage(sitk.ReadImage(str(trained.base / "MRI" / f"other_{number}.nii.gz")))
        assert seen.shape == source.shape
        inside = slice(FACTOR, -FACTOR)  # nearer to the ends, splines differ in what they take to lie beyond
        assert np.corrcoef(seen[inside].ravel(), source[inside].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("mode", INPUTS)
def test_all_of_it_learns_but_the_keeper(begin, mode):
    """Distillation, U, both resolutions and fusion in one step."""
    trainer = begin(mode)
    guidance, batch = guidance_of(trainer.network), next(trainer.dataloader_train)
    before = {name: parameter.clone() for name, parameter in guidance.fusions.named_parameters()}
    taught = hash_weights(guidance.keeper.state_dict())
    for _ in range(3):
        assert np.isfinite(trainer.train_step(batch)["loss"])
    assert {"lr", "hr", "affinity", "spatial"} == set(trainer.loss.components)
    assert hash_weights(guidance.keeper.state_dict()) == taught
    assert not guidance.keeper.training
    assert guidance.fusions.training
    still = [name for name, parameter in guidance.fusions.named_parameters() if torch.equal(parameter, before[name])]
    assert [name for name in still if ".refinement." not in name] == []  # a gate's ReLU may be shut


@pytest.mark.parametrize("mode", INPUTS)
def test_the_control_is_built_like_the_keeper_and_knows_nothing(trained, begin, mode):
    trainer = begin(mode, f"{BOTH}_randomKeeper")
    keeper = guidance_of(trainer.network).keeper
    taught = torch.load(trained.fold(KEEPER, PAIRS) / FINAL_CHECKPOINT, weights_only=False)["network_weights"]
    expected = keeper_in(taught, prefix="keeper.")
    assert {n: w.shape for n, w in keeper.state_dict().items()} == {n: w.shape for n, w in expected.items()}
    assert hash_weights(keeper.state_dict()) != hash_weights(expected)
    patch = torch.randn(1, keeper.shape.source_channels, 16, 16, 16)
    from_source = keeper.source_features(standardise(patch, patch_level(patch)))
    assert all((guide != own).any() for guide, own in zip(keeper(patch), from_source, strict=True))  # all is at work
    assert list(trainer.resolved.view.spacing_ratio) == kept_plans(trained, mode)[KEEPER_KEY]["view"]["spacing_ratio"]
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert not keeper.training


@pytest.mark.parametrize("mode", INPUTS)
def test_predictions_need_the_model_alone(trained, tmp_path, mode):
    """Both commands give the validation's files, without pairs, teacher, keeper and stage 1."""
    fold, images = fold_of(trained, mode), tmp_path / "scans"
    images.mkdir()
    names = sorted(file.name for file in (fold / "validation").glob("*.nii.gz"))
    assert names
    for name in names:
        scan = name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(trained.raw / trained.dataset(THICK) / "imagesTr" / scan, images)
    model = {"trainer": BOTH, "plans": plans_of(mode)}
    stage_1 = trained.fold("SelfSRTrainer", THICK).parent
    stage_1.rename(trained.base / "stage_1")
    try:
        with without(trained, PAIRS):
            lr = trained.predict(images, tmp_path / "lr", THICK, **model)
            hr = trained.predict_hr(images, tmp_path / "hr", THICK, **model)
    finally:
        (trained.base / "stage_1").rename(stage_1)
    for name in names:
        thick, thin = (sitk.ReadImage(str(folder / name)) for folder in (lr, hr))
        assert_same_field_of_view(thick, thin, factor=FACTOR)
        for image, validation in ((thick, "validation"), (thin, "validation_hr")):
            expected = sitk.ReadImage(str(fold / validation / name))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize("mode", INPUTS)
def test_guides_change_what_it_says_of_thick_slices_and_of_thin_ones(begin, mode):
    network = begin(mode).network.eval()
    guidance, image = guidance_of(network), torch.randn(1, 1, 4, 24, 24)
    for name, parameter in guidance.fusions.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    outputs = []
    for scale in (1, 0):
        with torch.no_grad(), output_mode(network, "hr"):
            for parameter in guidance.keeper.parameters():
                parameter.mul_(scale)
            outputs.append(network(image))
    assert not any(torch.equal(taught, blank) for taught, blank in zip(*outputs, strict=True))


def test_it_goes_on_with_the_keeper_of_its_checkpoint(trained):
    fold = fold_of(trained, "thin")
    before = hash_weights(torch.load(fold / FINAL_CHECKPOINT, weights_only=False)["network_weights"])
    with without(trained, PAIRS):
        trained.train(BOTH, THICK, "--val", plans="thin")
    assert hash_weights(torch.load(fold / FINAL_CHECKPOINT, weights_only=False)["network_weights"]) == before


def test_what_is_missing_is_named(trained, monkeypatch):
    monkeypatch.setenv(KEEPER_VARIABLE, "77")
    with pytest.raises(FileNotFoundError, match="no keeper of dataset 77 of a 3d configuration is finished"):
        trained.train(f"{BOTH}_1epoch", THICK)
    with trained.changed_plans(THICK) as changed:
        changed.plans["configurations"]["3d_fullres"]["guidance"]["learning_rate_from_trained"] = 0.5
        changed.write()
        with pytest.raises(ValueError, match="learning_rate_from_trained must be the same in both blocks"):
            trained.train(f"{BOTH}_1epoch", THICK)
