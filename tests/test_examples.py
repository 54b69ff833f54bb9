"""The examples in the docstrings run and give what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import rehrseg_nnunet

PACKAGE = Path(rehrseg_nnunet.__file__).parent
FILES = [file.relative_to(PACKAGE) for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text()]


def examples(module):
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.filterwarnings("ignore:monai")
def test_examples_of_a_module(file):
    module = importlib.import_module(".".join(("rehrseg_nnunet", *file.with_suffix("").parts)))
    tests = examples(module)
    assert tests
    report = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert "".join(report) == ""


def test_the_public_functions_for_arrays_have_examples():
    names = ("degrade", "degrade_labels", "dice", "hd95", "interpolate", "interpolate_labels", "interpolate_logits")
    for name in (*names, "load_preset", "psnr", "sr_factor"):
        assert ">>> " in getattr(rehrseg_nnunet, name).__doc__, name
