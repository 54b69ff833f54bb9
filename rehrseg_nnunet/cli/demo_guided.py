"""Guidance by a better scan on a generated phantom, on a CPU, in minutes."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from rehrseg_nnunet.cli.demo_folder import SHAPE, DemoFolder

SOURCE_ID, PAIRS_ID, USUAL_ID = 1, 2, 3
PAIRS, OTHERS = 12, 15
SEED = 2025
SCANNER = ("--resolution", "2", "--snr", "8", "--contrast", "0.6")
EPOCHS = {
    "GuidanceTeacherTrainer": 10,
    "KnowledgeKeeperTrainer": 20,
    "nnUNetTrainer": 20,
    "ContinuedBaselineTrainer": 16,
    "GuidedTrainer": 16,
}
TITLES = {
    "GuidanceTeacherTrainer": "2/7 teacher, of the better scans",
    "KnowledgeKeeperTrainer": "3/7 keeper, of the pairs",
    "nnUNetTrainer": "4/7 baseline, of the usual scans",
    "ContinuedBaselineTrainer": "5/7 baseline, continued",
    "GuidedTrainer": "6/7 guided",
}
COMPARED = {"baseline": "nnUNetTrainer", "baseline, continued": "ContinuedBaselineTrainer", "guided": "GuidedTrainer"}
CLOSING = """
It worked if the synthesised scans are nearer to the better ones than the usual scans are, and if guidance is not below
the continued baseline. Three phantoms and a few hundred steps say no more: numbers differ by some hundredths from run
to run.

segment a scan with the guided network, which needs nothing of the pairs any more:
    {predict}

finished in {minutes:.1f} min; everything is in {folder}
your own data: docs/how-to/guided.md of the repository"""


class GuidedDemo(DemoFolder):
    """Phantoms of which some have a better scan, the three trainings of guidance, the baselines, tables.

    Args:
        folder: folder that nnU-Net's environment variables point into.
    """

    def prepare(self) -> None:
        """Phantoms, what a weaker scanner would give of them, nnU-Net's planning and preprocessing."""
        from rehrseg_nnunet.cases.phantom import write_phantom_dataset
        from rehrseg_nnunet.config.guidance import BLOCK

        print(f"1/7 {PAIRS} phantoms with a usual and a better scan, {OTHERS} others with labels, nnU-Net's planning")
        raw = self.folder / "nnUNet_raw"
        source = raw / f"Dataset{SOURCE_ID:03d}_Phantom"
        write_phantom_dataset(source, cases=PAIRS + OTHERS, shape=SHAPE, seed=SEED)
        with self.quiet():
            self._simulate(PAIRS_ID, "pairs", f"0:{PAIRS}")
            self._simulate(USUAL_ID, "source", f"{PAIRS}:{PAIRS + OTHERS}")
        for number in (PAIRS_ID, USUAL_ID):
            self.plan(number, methods=(BLOCK,))

    def _simulate(self, number: int, channels: str, cases: str) -> None:
        from rehrseg_nnunet.cli import simulate_field

        parser = argparse.ArgumentParser()
        simulate_field.add_arguments(parser)
        which = ["-d", str(SOURCE_ID), "-o", str(number), "--channels", channels, "--cases", cases, "-np", "1"]
        simulate_field.run(parser.parse_args([*which, *SCANNER]))

    def train_all(self) -> None:
        """Teacher and keeper of the pairs; baseline, the same continued, and guided, of the others."""
        for trainer, title in TITLES.items():
            number = PAIRS_ID if trainer in ("GuidanceTeacherTrainer", "KnowledgeKeeperTrainer") else USUAL_ID
            self.train(title, trainer, number=number, epochs=EPOCHS[trainer])

    def dataset(self, number: int) -> str:
        """Its name."""
        (folder,) = (self.folder / "nnUNet_raw").glob(f"Dataset{number:03d}_*")
        return folder.name

    def tables(self) -> str:
        """How near the keeper's images are to the better scans, and Dice of the validation cases."""
        from rehrseg_nnunet.evaluation.tables import format_table
        from rehrseg_nnunet.guided.report import SOURCE, SYNTHESIS_REPORT, SYNTHESISED

        print("7/7 comparison on the validation cases")
        report = self.fold_of(self.dataset(PAIRS_ID), "KnowledgeKeeperTrainer") / SYNTHESIS_REPORT
        means = json.loads(report.read_text())["mean"]
        images = [
            {"": name, "PSNR": _shown(means[key]["psnr"], ".1f", " dB"), "SSIM": _shown(means[key]["ssim"], ".3f")}
            for name, key in (("usual scan, after the best line", SOURCE), ("synthesised", SYNTHESISED))
        ]
        dice = [{"": name, **self._dice(trainer)} for name, trainer in COMPARED.items()]
        return (
            f"\nAgainst the better scans of the pairs\n\n{format_table(images)}\n\n"
            f"Dice on the usual scans\n\n{format_table(dice)}"
        )

    def _dice(self, trainer: str) -> dict[str, str]:
        """By label, from nnU-Net's own validation."""
        name = self.dataset(USUAL_ID)
        labels = json.loads((self.folder / "nnUNet_raw" / name / "dataset.json").read_text())["labels"]
        summary = json.loads((self.fold_of(name, trainer) / "validation" / "summary.json").read_text())
        by_label = {label: summary["mean"][str(value)]["Dice"] for label, value in labels.items() if value}
        return {
            label: f"{dice:.3f}" for label, dice in {**by_label, "mean": summary["foreground_mean"]["Dice"]}.items()
        }

    def closing(self, minutes: float) -> str:
        """What is said at the end."""
        return CLOSING.format(minutes=minutes, folder=self.folder, predict=self.predict_command())

    def predict_command(self) -> str:
        """A command that segments a phantom with what was trained."""
        name = self.dataset(USUAL_ID)
        scan: Path = sorted((self.folder / "nnUNet_raw" / name / "imagesTr").iterdir())[0]
        words = ["rehrseg", "predict", "-m", self.fold_of(name, "GuidedTrainer").parent, "-i", scan]
        return shlex.join(map(str, [*words, "-o", self.folder / "segmentation.nii.gz"]))


def _shown(score: float | None, digits: str, unit: str = "") -> str:
    """Null in a report: no case has it."""
    return "not defined" if score is None else f"{score:{digits}}{unit}"
