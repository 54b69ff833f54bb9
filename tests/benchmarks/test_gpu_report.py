import json
import re
from importlib.metadata import requires

import pytest

from benchmarks.gpu.records import RESULTS, add_record, read_records
from benchmarks.gpu.report import DATA, NOT_RUN, PAGE, PRESENT, STUBS, TRAVELLING, main, page

STEP = {
    "part": "correctness",
    "task": "steps/REHRSegTrainer",
    "status": "result",
    "trainer": "REHRSegTrainer",
    "compiled": True,
    "steps": 20,
    "of": 20,
    "worst_loss_difference": 0.5,
    "worst_gradient_cosine": 0.25,
    "overflows": 1,
    "passed": False,
}


def test_the_page_is_made_of_the_data_beside_it():
    assert page(read_records(DATA)) == PAGE.read_text()


def test_every_requirement_is_on_the_gpu_machine_or_travels_there():
    """Whoever adds one also adds its wheel to what travels."""
    needed = {re.match(r"[\w.-]+", line)[0] for line in requires("rehrseg-nnunet") if "extra ==" not in line}
    assert needed <= set(", ".join((PRESENT, TRAVELLING, STUBS)).split(", "))


def test_without_a_run_the_page_says_so():
    assert NOT_RUN in page([])
    assert NOT_RUN not in page([STEP])


def test_a_comparison_that_is_off_stands_out():
    (line,) = [line for line in page([STEP]).splitlines() if "REHRSegTrainer, compiled" in line]
    assert line == "| REHRSegTrainer, compiled | 20 of 20 | 0.50000 | 0.2500 | 1 | **no** |"


def test_a_failure_is_named_with_the_end_of_its_traceback():
    failure = {
        "part": "cost",
        "task": "case/large",
        "status": "failed",
        "error": "Traceback\n  x\nValueError: no | yes\n",
    }
    assert "| case/large | failed | ValueError: no \\| yes |" in page([failure])


def test_records_survive_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / RESULTS
    add_record(file, {"a": 1})
    add_record(file, {"a": 2})
    with file.open("ab") as stream:
        stream.write(json.dumps({"a": 3}).encode()[:-2])
    assert read_records(file) == [{"a": 1}, {"a": 2}]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"error: OUT must be the folder of a run, but .* has no results"):
        main([str(tmp_path)])
