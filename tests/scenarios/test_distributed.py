"""Both stages in two processes (gloo, CPU): equal weights, work split without gaps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from nnunetv2.run.run_training import get_trainer_from_args
from short_runs import STEPS
from workspace import log_of

from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.self_sr.export import STORE_NAME

pytestmark = pytest.mark.slow

ISOTROPIC, THICK = 1, 2
RANKS = (0, 1)
TRAININGS = ("stage 1", "stage 2", "without distillation")
TIMEOUT_S = 300
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(nnunet):
    """What each rank saw and printed in a training of both stages, started from a baseline."""
    nnunet.write_phantom(ISOTROPIC)
    nnunet.simulate(ISOTROPIC, THICK)
    nnunet.prepare(THICK)
    nnunet.train("nnUNetTrainer", THICK)
    with nnunet.changed_plans(THICK) as change:
        configuration = change.plans["configurations"]["3d_fullres"]
        configuration["batch_dice"] = True  # the Dice gathers over ranks
        configuration["rehrseg"]["self_sr"]["batch_size"] = 5
        change.write()
        seen, printed = run_together(nnunet)
    return nnunet, seen, printed


def run_together(nnunet):
    folder = nnunet.base / "ddp"
    folder.mkdir()
    arguments = [len(RANKS), folder, nnunet.dataset(THICK), "tiny"]
    outputs = [folder / f"{rank}.txt" for rank in RANKS]
    processes = [
        Command("ddp:main", rank, *arguments, output=output, **{STEPS: "3"})
        for rank, output in zip(RANKS, outputs, strict=True)
    ]
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    printed = [output.read_text() for output in outputs]
    assert codes == [0, 0], "\n".join(printed)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in RANKS], printed


def split_of(nnunet):
    return json.loads((nnunet.plans(THICK).parent / "splits_final.json").read_text())[0]


@pytest.mark.parametrize("training", TRAININGS)
def test_parameters_are_equal_after_every_step(trained, training):
    """Different batches, the same weights; an unused parameter would have ended the second step."""
    _, seen, _ = trained
    first, second = (rank[training] for rank in seen)
    assert len(first["weights"]) == (3 if training == "without distillation" else 6)
    assert first["weights"] == second["weights"]
    assert len(set(first["weights"])) == len(first["weights"])
    contents = [[content for _, content in rank["batches"]] for rank in (first, second)]
    assert len({*contents[0], *contents[1]}) == 2 * len(contents[0])
    assert np.isfinite([first["losses"], second["losses"]]).all()
    assert first["losses"] != second["losses"]


def test_stage_1_went_through_both_phases(trained):
    _, seen, _ = trained
    for rank in seen:
        assert rank["stage 1"]["uncertainty"] == [False] * 3 + [True] * 3


def test_batches_are_split(trained):
    """Equal shares; as in nnU-Net the last ones of the whole batch hold foreground."""
    _, seen, _ = trained
    assert [rank["stage 1"]["batch_size"] for rank in seen] == [2, 2]  # of 5
    assert [rank["stage 2"]["batch_size"] for rank in seen] == [1, 1]  # of 2
    for rank in seen:
        for training in TRAININGS:
            assert {size for size, _ in rank[training]["batches"]} == {rank[training]["batch_size"]}
    assert [rank["stage 1"]["oversample"] for rank in seen] == [0, 0.5]
    assert [rank["stage 2"]["oversample"] for rank in seen] == [0, 1]


@pytest.mark.parametrize(("batch_size", "shares"), [(8, [2, 2, 2, 2]), (11, [2, 2, 2, 2]), (3, [1, 1, 1, 1])])
def test_stage_1_splits_its_own_batch(trained, batch_size, shares):
    """The plan's batch of 2, which is another network's, would not be enough for four ranks."""
    nnunet, _, _ = trained
    with nnunet.changed_plans(THICK) as change, pytest.MonkeyPatch.context() as patch:
        change.plans["configurations"]["3d_fullres"]["rehrseg"]["self_sr"]["batch_size"] = batch_size
        change.write()
        trainers = [
            get_trainer_from_args(nnunet.dataset(THICK), "3d_fullres", 0, "SelfSRTrainer", "tiny", device=CPU)
            for _ in shares
        ]
        patch.setattr(torch.distributed, "get_world_size", lambda: len(shares))
        for rank, trainer in enumerate(trainers):
            patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            trainer.is_ddp = True
            trainer._set_batch_size_and_oversample()
    assert [trainer.batch_size for trainer in trainers] == shares
    oversampled = [trainer.oversample_foreground_percent * trainer.batch_size for trainer in trainers]
    assert sum(oversampled) / sum(shares) == pytest.approx(0.33, abs=0.1)
    assert trainers[0].configuration_manager.batch_size == 2


def test_no_output_of_deep_supervision_is_unused(trained):
    _, seen, _ = trained
    for rank in seen:
        assert rank["deep supervision"][-1] == pytest.approx(1e-6, rel=0.1)


def test_every_pseudo_hr_case_is_written_by_one_rank(trained):
    nnunet, seen, _ = trained
    written = [rank["export"]["cases"] for rank in seen]
    assert all(written)
    assert sorted(written[0] + written[1]) == sorted(split_of(nnunet)["train"])
    store = CaseStore(nnunet.fold("SelfSRTrainer", THICK), STORE_NAME)
    store.manifest = store.read_manifest()
    assert store.complete_cases() == sorted(split_of(nnunet)["train"])
    assert not list(store.fold_folder.glob("pseudo_hr_tmp_*"))


def test_the_first_rank_reports(trained):
    nnunet, seen, printed = trained
    assert [rank["export"]["scored"] for rank in seen] == [2 * 3, 0]  # two cases: along y, along x, true HR
    assert (nnunet.fold("SelfSRTrainer", THICK) / "self_sr_report.json").is_file()
    log = log_of(nnunet.fold("SelfSRTrainer", THICK))
    assert log.count("pseudo-HR cases are in") == 1
    assert [text.count("pseudo-HR cases are in") for text in printed] == [1, 0]


def test_every_case_is_interpolated_once(trained):
    """One rank writes while the other waits, and finds nothing left to do."""
    _, _, printed = trained
    bars = [re.findall(r"interpolating cases: +100%.* (\d+)/\1 ", text) for text in printed]
    assert sorted(len(bar) > 0 for bar in bars) == [False, True]


@pytest.mark.parametrize(("folder", "line"), [("validation", r"predicting (\S+)$"), ("validation_hr", " (.+) in HR$")])
def test_validation_is_split(trained, folder, line):
    nnunet, _, printed = trained
    cases = sorted(split_of(nnunet)["val"])
    predicted = [re.findall(f"predicting{line.removeprefix('predicting')}", text, re.MULTILINE) for text in printed]
    assert all(predicted)
    assert sorted(predicted[0] + predicted[1]) == cases
    files = (nnunet.fold("REHRSegTrainer", THICK) / folder).glob("*.nii.gz")
    assert sorted(file.name.removesuffix(".nii.gz") for file in files) == cases


def test_validation_alone_with_fewer_cases_than_processes(trained):
    """A process without cases must not be waited for by the network of another, which would last until the timeout."""
    nnunet, _, _ = trained
    case = split_of(nnunet)["val"][0]
    for folder in ("validation", "validation_hr"):
        files = (nnunet.fold("REHRSegTrainer_2epochs", THICK) / folder).glob("*.nii.gz")
        assert [file.name for file in files] == [f"{case}.nii.gz"]


def test_stage_2_starts_from_the_baseline_on_both_ranks(trained):
    nnunet, _, printed = trained
    baseline = Path(nnunet.fold("nnUNetTrainer", THICK), "checkpoint_final.pth")
    starts = [re.findall(rf"training starts from {baseline} \(weights (\w+)\)", text) for text in printed]
    assert len(starts[0]) == len(starts[1]) == 2  # with and without distillation
    assert starts[0] == starts[1]
