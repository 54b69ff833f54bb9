"""`rehrseg demo --guided`, as short as it can be: every step, and what is printed at the end."""

import pytest
from workspace import environment

from rehrseg_nnunet.cli import demo_folder, demo_guided
from rehrseg_nnunet.cli.main import main

pytestmark = pytest.mark.slow


def test_all_steps_and_the_tables(tmp_path, monkeypatch, capsys):
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from short_runs import draw_few_intensities, use_threads

    use_threads(monkeypatch.setattr)
    draw_few_intensities(monkeypatch.setattr)
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)  # slow
    for name in ("STEPS_PER_EPOCH", "VALIDATION_STEPS"):
        monkeypatch.setattr(demo_folder, name, 1)
    for name, value in (
        ("PAIRS", 5),
        ("OTHERS", 5),
        ("SHAPE", (16, 24, 24)),
        ("EPOCHS", dict.fromkeys(demo_guided.EPOCHS, 1)),
    ):
        monkeypatch.setattr(demo_guided, name, value)
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", *demo_folder.ENVIRONMENT)
    with environment(**dict.fromkeys(names, "")):  # the demo sets them, and they come back
        assert main(["demo", "--guided", "-o", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for words in (
        "usual scan, after the best line",
        "synthesised",
        "baseline, continued",
        "guided",
        "rehrseg predict -m",
    ):
        assert words in printed
