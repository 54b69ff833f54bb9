import importlib
import inspect
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.gpu.__main__ import _chosen
from benchmarks.gpu.budgets import done_after, part_tasks
from benchmarks.gpu.correctness import Comparison
from benchmarks.gpu.data import GPUData
from benchmarks.gpu.parts import (
    BASE,
    BOTH_METHODS,
    FULL_SECONDS,
    GUIDED,
    NOISELESS_TEACHER,
    OURS,
    PARTS,
    VARIANTS,
    Lengths,
    Part,
    Task,
    tasks,
)
from benchmarks.gpu.prepare import check_size
from benchmarks.gpu.records import RESULTS, read_records
from benchmarks.gpu.scheduler import Scheduler, Settings
from rehrseg_nnunet.trainers.rehrseg_training_lengths import TRAINERS


def test_tasks_have_unique_names_and_needs_that_come_before_them():
    names = [task.name for task in tasks()]
    assert len(names) == len(set(names))
    for number, task in enumerate(tasks()):
        assert set(task.after) <= set(names[:number]), task.name


def test_tasks_call_functions_that_take_their_arguments():
    for task in tasks():
        module, name = task.function.split(":")
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind(None, **task.arguments)


def test_nine_minutes_hold_all_parts_and_the_imports():
    assert 9 * 60 - 30 <= FULL_SECONDS <= 9 * 60 - 15
    assert {task.part for task in tasks()} == {part.name for part in PARTS}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_should_be_done_within_its_budget(part):
    assert done_after(part, part_tasks(part)) <= part.seconds


def test_tasks_of_a_part_share_its_room():
    part = Part("correctness", 100, 2)
    one, two, three = (
        Task(name, "correctness", "", seconds=seconds) for name, seconds in zip("abc", (5, 2, 4), strict=True)
    )
    assert done_after(part, [one, two, three]) == 6
    assert done_after(part, [one, two, replace(three, after=("a",))]) == 9


def test_every_trainer_is_compared_with_the_cpu_and_timed():
    stepped = {task.arguments["trainer"] for task in tasks() if task.function.endswith("correctness:steps")}
    timed = {task.arguments["trainer"] for task in tasks() if task.function.endswith("cost:steps")}
    own = {name for name in TRAINERS if "_" not in name} | {"nnUNetTrainer"}
    assert own == {name.split("_")[0] for name in {*timed, BOTH_METHODS}}
    assert timed == {*BASE, *OURS, *GUIDED}
    variants = {NOISELESS_TEACHER, *(f"REHRSegTrainer_{variant}" for variant in VARIANTS)}
    assert stepped == timed - {"GuidanceTeacherTrainer"} | variants | {BOTH_METHODS}


class Tiny:
    """A trainer of one layer; `factor` is what its device makes of a loss."""

    def __init__(self, factor=1.0):
        torch.manual_seed(0)
        self.network, self.factor = nn.Linear(8, 1), factor

    def train_step(self, batch):
        self.network.zero_grad()
        loss = (self.network(batch["data"]) * self.factor).square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter -= 0.1 * parameter.grad
        return {"loss": loss.detach().numpy()}


def compared(factor, steps=3):
    comparison, trainer, reference = Comparison(), Tiny(factor), Tiny()
    for seed in range(steps):
        comparison.add(trainer, reference, {"data": torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))})
    return comparison.result()


def test_equal_steps_pass():
    assert compared(1.0) == {**compared(1.0), "worst_loss_difference": 0.0, "passed": True}


class Judged(Tiny):
    """With an adversary whose gradient has a direction that depends on its own weights."""

    def __init__(self, factor=1.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        discriminator = nn.Linear(8, 1)
        self.optimizer = SimpleNamespace(adversary=SimpleNamespace(discriminator=discriminator))
        self.direction = torch.tensor([factor, *[1.0] * 7])

    def train_step(self, batch):
        discriminator = self.optimizer.adversary.discriminator
        discriminator.zero_grad()
        discriminator(batch["data"] * self.direction).square().mean().backward()
        with torch.no_grad():
            batch = {"data": batch["data"] * (1 + discriminator.weight.mean())}
        return super().train_step(batch)


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (100.0, False)])
def test_a_discriminator_is_compared_from_the_same_weights(factor, passed):
    comparison, trainer, reference = Comparison(), Judged(factor, seed=1), Judged(seed=2)
    comparison.add(trainer, reference, {"data": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))})
    result = comparison.result()
    assert result["worst_loss_difference"] == 0
    assert result["passed"] is passed


def test_a_folder_without_pairs_is_refused(tmp_path):
    data = GPUData(tmp_path, "Dataset501_A", "Dataset601_A", "Dataset502_B", 4, (), ())
    with pytest.raises(ValueError, match=r"must have pairs and scans for guidance, got none; run .* --add-pairs"):
        data.check_guidance()


def test_plans_of_pairs_with_unknown_settings_are_refused(tmp_path):
    data = GPUData(tmp_path, "Dataset501_A", "Dataset601_A", "Dataset502_B", 4, (), (), "Dataset503_P", "Dataset504_S")
    data.preprocessed(data.pairs).mkdir(parents=True)
    configuration = {"spacing": [1, 1, 1], "batch_size": 2, "architecture": {}, "guidance": {"kernels": 3}}
    plans = {"configurations": {"3d_fullres": configuration}}
    for name in ("small", "default"):
        (data.preprocessed(data.pairs) / f"{name}.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"small.json: guidance.kernels: unknown key; the version changed: run "):
        data.check_guidance()


def test_trainers_with_guidance_have_data_of_their_own(tmp_path):
    data = GPUData(tmp_path, "Dataset501_A", "Dataset601_A", "Dataset502_B", 4, (), (), "Dataset503_P", "Dataset504_S")
    found = [data.dataset_of(name) for name in (NOISELESS_TEACHER, *GUIDED, BOTH_METHODS, *OURS)]
    assert found == [data.pairs] * 3 + [data.scans] + [data.thick] * 4


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_another_loss_does_not_pass(factor):
    assert not compared(factor)["passed"]


def test_what_travels_is_limited():
    check_size({"code": 1.0, "data": 2.0}, limit_mib=3)
    with pytest.raises(ValueError, match=r"at most 2 MiB, got 3.0 \(code 1.0 MiB, data 2.0 MiB\); take fewer --cases"):
        check_size({"code": 1.0, "data": 2.0}, limit_mib=2)


@pytest.mark.slow
def test_a_task_that_fails_or_hangs_costs_that_task_only(tmp_path):
    (tmp_path / "out").mkdir()
    data = GPUData(tmp_path / "data", "Dataset501_A", "Dataset601_A", "Dataset502_B", 4, (), ())
    data.folder.mkdir()
    scheduler = Scheduler(Settings("cpu", data, Lengths(), tmp_path / "out"), cores=2, grace_s=1)
    chosen = [
        Task(name, "correctness", f"gpu_tasks:{function}", seconds=seconds, after=after, gpu_only=gpu_only)
        for name, function, seconds, after, gpu_only in (
            ("hangs", "hang", 1, (), ""),
            ("fails", "fail", 5, (), ""),
            ("takes too long", "succeed", 61, (), ""),
            ("wants a GPU", "fail", 5, (), "it is fast"),
            ("dies", "die", 5, (), ""),
            ("needs it", "succeed", 5, ("fails",), ""),
            ("goes well", "succeed", 5, (), ""),
        )
    ]
    scheduler.run(Part("correctness", 60, 4), chosen, until=time.monotonic() + 60)
    assert scheduler.done == {
        "hangs": "timed out",
        "takes too long": "skipped",
        "wants a GPU": "not on this device",
        "fails": "failed",
        "dies": "died with exit code -9",
        "needs it": "skipped",
        "goes well": "ok",
    }
    records = read_records(tmp_path / "out" / RESULTS)
    assert {"part": "correctness", "task": "goes well", "status": "result", "value": 1} in records
    assert {"part": "correctness", "task": "fails", "status": "result", "value": 0} in records
    (left_out,) = [record for record in records if record["task"] == "wants a GPU"]
    assert left_out["reason"] == "it is fast"
    (skipped,) = [record for record in records if record["task"] == "takes too long"]
    assert re.fullmatch(r"takes 61 s or more, \d+ s were left of its part", skipped["reason"])
    (failure,) = [record for record in records if record["status"] == "failed"]
    assert failure["error"].endswith("ValueError: on purpose\n")


def test_the_minutes_count_from_the_start_of_the_process():
    code = "import time; time.sleep(0.5); from benchmarks.gpu.__main__ import _age_of_process; print(_age_of_process())"
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 0.5 < age < time.monotonic() - began + 0.1


def test_chosen_tasks_bring_what_they_need():
    names = [task.name for task in _chosen(["train/rehrseg", "case/*"])]
    assert names == ["environment", "workspace", "case/thick", "case/large", "train/baseline", "train/rehrseg"]
    assert _chosen(["*"]) == tasks()
    with pytest.raises(ValueError, match=r"--only must name tasks such as .*, got train/all"):
        _chosen(["*", "train/all"])
