import argparse
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from rehrseg_nnunet.cli import run_model
from rehrseg_nnunet.cli.predict import add_arguments, run
from rehrseg_nnunet.cli.predict_options import OWN
from rehrseg_nnunet.prediction.inputs import Images
from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid
from rehrseg_nnunet.prediction.spacing_grid import SpacingGrid

REQUIRED = ["-d", "1", "-c", "3d_fullres"]
CHECKPOINT = {
    "network_weights": {},
    "trainer_name": "REHRSegTrainer",
    "init_args": {"configuration": "3d_fullres"},
}


def own_parser():
    parser = argparse.ArgumentParser(prog="rehrseg predict")
    add_arguments(parser)
    return parser


@pytest.fixture
def nnunet_parser(monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    class CaughtError(Exception):
        pass

    caught = []

    def catch(parser, *args, **kwargs):
        caught.append(parser)
        raise CaughtError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(CaughtError):
            predict_entry_point()
    return caught[0]


def options(parser):
    return {action.option_strings[-1]: action for action in parser._actions if action.dest != "help"}


def test_has_every_option_of_nnunet_with_the_same_meaning(nnunet_parser, monkeypatch):
    monkeypatch.delenv("nnUNet_npp", raising=False)
    monkeypatch.delenv("nnUNet_nps", raising=False)
    own, stock = options(own_parser()), options(nnunet_parser)
    assert set(own) - set(stock) == set(OWN)
    for flag, action in stock.items():
        mine = own[flag]
        assert (mine.dest, type(mine)) == (action.dest, type(action)), flag
        assert mine.type in (action.type, None), flag
        # defaults of -d, see below; a part must be named, and a GPU is not expected
        if flag not in ("-tr", "-p", "-f", "-part_id", "-device"):
            assert mine.default == action.default, flag
        if flag not in ("-d", "-c"):  # -m instead
            assert mine.required == action.required, flag
        if flag != "-i":  # one file for each channel
            assert mine.nargs == action.nargs, flag
        assert mine.help != action.help or action.help is None


@pytest.mark.parametrize(("value", "expected"), [("2", 2), ("", 3)])
def test_workers_from_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("nnUNet_npp", value)
    assert own_parser().parse_args(["-i", "a", "-o", "b", *REQUIRED]).npp == expected


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command on an existing model folder with a predictor that notes what it is asked."""
    asked = {}

    class Predictor:
        def __init__(self, **kwargs):
            asked["init"] = kwargs
            self.dataset_json = {"file_ending": ".nii.gz", "labels": {"background": 0, "a": 1}}
            self.images = Images(1, ".nii.gz", (".nii.gz", ".nii", ".nrrd"))
            self.plans_manager = SimpleNamespace(dataset_name="Dataset001_Tiny", plans_name="nnUNetPlans")
            self.plans_manager.image_reader_writer_class = SimpleITKIO
            self.list_of_parameters, self.device = [{}], torch.device("cpu")
            self.preprocessed, self.hr_from, self.use_mirroring = None, "mean", kwargs["use_mirroring"]
            self.grids, self.writers = kwargs["grid"] or (HRGrid(),), kwargs["writers"]

        def check_cases(self, names, previous_stage):
            asked["checked"] = (names, previous_stage)

        def write_as(self, ending):
            asked["ending"] = ending

        def initialize_from_trained_model_folder(self, folder, folds, **kwargs):
            asked["model"] = (folder, folds, kwargs)

        def predict_from_files(self, *args, **kwargs):
            asked["workers"] = (args, kwargs)

        def predict_from_files_sequential(self, *args, **kwargs):
            asked["sequential"] = (args, kwargs)

    model = tmp_path / "results" / "Dataset001_Tiny" / "REHRSegTrainer__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").write_text('{"configurations": {"3d_fullres": {}}}')
    (model / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}')
    for fold in (*range(5), "all"):
        (model / f"fold_{fold}").mkdir(parents=True)
        for name in ("final", "best"):
            torch.save(CHECKPOINT, model / f"fold_{fold}" / f"checkpoint_{name}.pth")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_0000.nii.gz").touch()
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr("rehrseg_nnunet.prediction.predictor.HRPredictor", Predictor)
    monkeypatch.setattr(run_model, "ensure_trainer_path", lambda: asked.setdefault("trainer path", True))

    def run_with(*flags):
        base = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *REQUIRED, "-device", "cpu"]
        run(own_parser().parse_args([*base, *flags]))
        return asked

    run_with.model = model
    run_with.asked = asked
    return run_with


def test_passes_everything_on(call, tmp_path):
    asked = call(
        "-f",
        "0",
        "all",
        "-step_size",
        "0.7",
        "--disable_tta",
        "--no_hr_head",
        "--save_probabilities",
        "--continue_prediction",
        "-chk",
        "checkpoint_best.pth",
        "-npp",
        "1",
        "-nps",
        "2",
        "--disable_progress_bar",
        "--not_on_device",
    )
    assert asked["trainer path"]
    assert asked["model"] == (str(call.model), (0, "all"), {"checkpoint_name": "checkpoint_best.pth"})
    init = asked["init"]
    assert (init["tile_step_size"], init["use_mirroring"], init["perform_everything_on_device"]) == (0.7, False, False)
    assert (init["allow_tqdm"], init["device"].type, init["grid"]) == (False, "cpu", None)
    assert init["hr_from"] == "lr"
    args, kwargs = asked["workers"]
    assert args == ([[str(tmp_path / "in" / "a_0000.nii.gz")]], [str(tmp_path / "out" / "a")])
    assert kwargs == {
        "save_probabilities": True,
        "overwrite": False,
        "folder_with_segs_from_prev_stage": None,
        "num_processes_preprocessing": 1,
        "num_processes_segmentation_export": 2,
    }
    assert "sequential" not in asked
    assert (tmp_path / "out").is_dir()


def test_without_workers(call):
    asked = call("-npp", "0", "-nps", "0")
    options = {"save_probabilities": False, "overwrite": True, "folder_with_segs_from_prev_stage": None}
    assert asked["sequential"][1] == options
    assert asked["model"][1] == (0, 1, 2, 3, 4)
    assert asked["init"]["use_mirroring"]
    assert asked["init"]["hr_from"] is None  # the model's own setting
    assert "workers" not in asked


@pytest.mark.parametrize("source", ["head", "lr", "mean"])
def test_where_thin_slices_come_from(call, source):
    assert call("--hr_from", source)["init"]["hr_from"] == source


def test_the_older_option_and_the_newer_one_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        own_parser().parse_args(["-i", "a", "-o", "b", *REQUIRED, "--hr_from", "head", "--no_hr_head"])
    assert "--no_hr_head: not allowed with argument --hr_from" in capsys.readouterr().err


def test_grids(call, tmp_path):
    grids = call("--grid", "native", str(tmp_path / "in"), "0.5,0.5,1")["init"]["grid"]
    assert grids == (NativeGrid(), ReferenceGrid(tmp_path / "in"), SpacingGrid((0.5, 0.5, 1)))
    with pytest.raises(FileNotFoundError, match="--grid must be"):
        call("--grid", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["-prev_stage_predictions", "x"], FileNotFoundError, "-prev_stage_predictions must be an existing folder"),
        (["-num_parts", "2", "-part_id", "2"], ValueError, "-part_id must be"),
        (["-step_size", "1.5"], ValueError, "-step_size must be"),
        (["-npp", "0"], ValueError, "both 0 or both positive"),
        (["-f", "x"], ValueError, "-f must be"),
        (["-tr", "OtherTrainer"], FileNotFoundError, "^no training OtherTrainer__nnUNetPlans__3d_fullres"),
        (["-i", "/none/such"], FileNotFoundError, "-i must be"),
    ],
)
def test_refuses(call, flags, error, message):
    with pytest.raises(error, match=message):
        call(*flags)
    assert "model" not in call.asked


@pytest.mark.parametrize(
    ("names", "got"),
    [
        ([], r"files that end in \.nii\.gz, got none$"),
        (["a_0000.mha"], r"files that end in \.nii\.gz, got none, but a_0000\.mha; rename or convert them"),
        (["a_0000.nii.gz", "b.nii.gz"], r"images named CASE_0000\.nii\.gz, .*got b\.nii\.gz; rename them"),
        (
            ["a_0000.nii.gz", "a_1.nii.gz", *(f"{i}.nii.gz" for i in range(6))],
            r"images .*got 0\.nii\.gz, .* and 2 more; rename",
        ),
    ],
)
def test_refuses_images_without_nnunets_names(call, tmp_path, names, got):
    """nnU-Net itself does nothing, or raises an IndexError."""
    (tmp_path / "in" / "a_0000.nii.gz").unlink()
    for name in names:
        (tmp_path / "in" / name).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=rf"/in must hold {got}"):
        call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"^fold 3 is not trained: .*fold_3.checkpoint_final\.pth does not .*; trained folds: 0 1 2 4 all;",
        ),
        (b"", r"fold_3.checkpoint_final\.pth must be an nnU-Net checkpoint.*; choose .* -f"),
        (b"PK damaged", r"fold_3.checkpoint_final\.pth must be an nnU-Net checkpoint.*; choose .* -f"),
    ],
)
def test_refuses_missing_and_damaged_checkpoints(call, content, message):
    file = call.model / "fold_3" / "checkpoint_final.pth"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()
    assert "model" not in call.asked
    call("-f", "0", "4")


def test_a_gpu_can_be_chosen_twice(monkeypatch):
    """PyTorch takes the number of its inter-op threads once per process."""
    threads = [4]

    def set_threads(number):
        assert threads == [4], "cannot set number of interop threads"
        threads[:] = [number]

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.get_num_interop_threads", lambda: threads[0])
    monkeypatch.setattr("torch.set_num_interop_threads", set_threads)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    assert [run_model.choose_device("cuda").type for _ in range(2)] == ["cuda"] * 2
    assert threads == [1]


def test_refuses_a_missing_gpu(call, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="-device must be available"):
        call("-device", "cuda")


def test_a_misspelt_training_names_those_that_are_there(call):
    found = r"found: REHRSegTrainer__nnUNetPlans__3d_fullres; check -tr, -p and -c$"
    with pytest.raises(FileNotFoundError, match=rf"^no training REHRSegTrainr__nnUNetPlans__3d_fullres in .*; {found}"):
        call("-tr", "REHRSegTrainr")
    with pytest.raises(FileNotFoundError, match=r"^dataset 77 was not found in .*; there are: Dataset001_Tiny$"):
        call("-d", "77")


def test_says_where_the_results_are(call, tmp_path, capsys):
    call()
    assert capsys.readouterr().out.splitlines()[-1] == f"the segmentations are in {tmp_path / 'out'}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_the_output_folder_is_named_where_the_system_names_no_file(number):
    reason = os.strerror(number)
    message = rf"^out: a file could not be written there \({reason}\); free space"
    with pytest.raises(OSError, match=message), run_model._naming(Path("out")):
        raise OSError(number, reason)
    with pytest.raises(OSError, match="npz could not be written"), run_model._naming(Path("out")):
        raise OSError("a.npz could not be written")
