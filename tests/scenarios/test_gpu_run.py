"""The rehearsal of the GPU run on the CPU: phantoms, tiny networks, every task."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import draw_few_intensities
from workspace import environment

from benchmarks.gpu import prepare
from benchmarks.gpu.parts import tasks
from benchmarks.gpu.records import RESULTS, read_records
from benchmarks.gpu.report import page
from benchmarks.gpu.scheduler import LEFT_OUT
from rehrseg_nnunet.cases.phantom import write_phantom_dataset

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
# A stub in place of SimpleITK, which the GPU machine does not have.
STUB = """
class Image:
    pass

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def refuse(*args, **kwargs):
        raise RuntimeError(f"SimpleITK.{name}: only a stub here")
    return refuse
"""


@pytest.fixture(scope="module")
def run(nnunet, tmp_path_factory):
    """A finished run: the text that it printed and its folder."""
    base = tmp_path_factory.mktemp("gpu")
    for name, cases, shape in (("Dataset001_Phantom", 7, (16, 24, 24)), ("Dataset002_Large", 2, (16, 32, 32))):
        write_phantom_dataset(base / name, cases=cases, shape=shape, seed=1)
    arguments = ["--source", base / "Dataset001_Phantom", "--large", base / "Dataset002_Large", "--out", base / "data"]
    counts = [
        "--cases",
        5,
        "--test-cases",
        2,
        "--large-cases",
        2,
        "--pairs",
        3,
        "--scans",
        2,
        "--stage-1-steps",
        4,
        "--preset",
        "demo",
        "--tiny",
    ]
    variables = {"nnUNet_raw": "", "nnUNet_preprocessed": "", "nnUNet_results": "", "REHRSEG_SELF_SR": ""}
    with environment(**variables), pytest.MonkeyPatch.context() as patch:
        draw_few_intensities(patch.setattr)
        prepare.main([str(argument) for argument in (*arguments, *counts, "--wheels", base / "none")])
    (base / "stub").mkdir()
    (base / "stub" / "SimpleITK.py").write_text(STUB)
    path = os.pathsep.join([str(base / "stub"), str(REPOSITORY)])
    command = [sys.executable, "-m", "benchmarks.gpu", "--data", base / "data", "--out", base / "out"]
    done = subprocess.run(
        [*map(str, command), "--device", "cpu", "--minutes", "9"],  # it ends when all is done
        env={**os.environ, "PYTHONPATH": path},
        cwd=base,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout, base / "out"


def test_every_task_goes_well_or_needs_a_gpu(run):
    text, out = run
    ends = {r["task"]: r for r in read_records(out / RESULTS) if "task" in r and r["status"] != "result"}
    expected = {task.name: LEFT_OUT if task.gpu_only else "ok" for task in tasks()}
    wrong = {name: end.get("error") for name, end in ends.items() if end["status"] != expected[name]}
    assert wrong == {}, text
    assert set(ends) == set(expected), text
    assert all(end["reason"] for end in ends.values() if end["status"] == LEFT_OUT)


def test_every_check_passes_and_the_page_says_so(run):
    records = read_records(run[1] / RESULTS)
    checks = [record["passed"] for record in records if "passed" in record]
    assert len(checks) > 20
    assert all(checks)
    text = page(records)
    assert "**no**" not in text
    assert "## Training steps, loader excluded" in text


def test_few_small_files_come_back(run):
    files = [file for file in run[1].rglob("*") if file.is_file()]
    assert len(files) <= 8
    assert sum(file.stat().st_size for file in files) < 4 * 2**20


def test_data_of_something_else_are_refused(tmp_path):
    from benchmarks.gpu.__main__ import main

    with pytest.raises(SystemExit, match=r"error: --data must be a folder that .* wrote, but .*gpu\.json is missing"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"])
