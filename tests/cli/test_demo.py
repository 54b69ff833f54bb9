"""What the demo says at its end; all of it runs in `.ci/run`."""

import shlex

import pytest
import SimpleITK as sitk
from random_model import scan, write_random_model

from rehrseg_nnunet.cli.demo import CLOSING, CONFIGURATION, PLANS, Demo
from rehrseg_nnunet.cli.main import main


@pytest.fixture
def demo(tmp_path):
    """A finished demo in a folder whose name has a blank, as far as prediction looks."""
    demo = Demo(tmp_path / "my demo")
    demo.thick = demo.folder / "nnUNet_raw" / "Dataset002_Random"
    model = write_random_model(demo.folder / "nnUNet_results", number=2)
    model.rename(model.with_name(f"REHRSegTrainer__{PLANS}__{CONFIGURATION}"))
    (demo.thick / "imagesTr").mkdir(parents=True)
    for name in ("b", "a"):
        sitk.WriteImage(scan(), str(demo.thick / "imagesTr" / f"{name}_0000.nii.gz"))
    return demo


def test_the_last_lines_name_a_prediction_that_works(demo):
    (line,) = (line for line in CLOSING.splitlines() if "{predict}" in line)
    command = shlex.split(line.format(predict=demo.predict_command()))
    assert command[0] == "rehrseg"
    assert any(word.endswith("imagesTr/a_0000.nii.gz") for word in command)
    assert main(command[1:]) == 0
    assert (demo.folder / "segmentation.nii.gz").is_file()
