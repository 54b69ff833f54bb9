"""Run everything on a generated phantom, on a CPU, in minutes."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rehrseg_nnunet.cli.demo_folder import CONFIGURATION, FOLD, PLANS, SHAPE, DemoFolder, set_environment

if TYPE_CHECKING:
    from rehrseg_nnunet.cli.demo_guided import GuidedDemo

SOURCE_ID, THICK_ID = 1, 2
FACTOR = 4
CASES = 15
SEED = 2025
BASELINE_EPOCHS, STAGE_2_EPOCHS = 20, 24
CLOSING = """
It worked if REHRSeg and the baselines are close on thick slices, and if on thin slices the nearest-neighbour rows
(repeated slices) are far below the others. REHRSeg's lead here is a phantom's: short trainings on real MRI do not
show it. Three phantoms and a few hundred steps say no more: numbers differ by some hundredths from run to run.

segment a scan with a trained model, here one of the phantoms:
    {predict}

finished in {minutes:.1f} min; everything is in {folder}
to look at, in a browser: {page}
your own data: docs/getting-started.md of the repository"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg demo`."""
    parser.add_argument(
        "-o", default="rehrseg_demo", metavar="FOLDER", help="new folder for all files (default: rehrseg_demo)"
    )
    parser.add_argument("--guided", action="store_true", help="guidance by a better scan in place of REHRSeg")


def run(args: argparse.Namespace) -> None:
    """Phantom, trainings, tables; of REHRSeg a page too."""
    folder = Path(args.o).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"-o must name a new or empty folder, got {folder}")
    set_environment(folder)
    started = time.monotonic()
    demo = _guided_demo(folder) if args.guided else Demo(folder)
    demo.prepare()
    demo.train_all()
    print(demo.tables())
    print(demo.closing((time.monotonic() - started) / 60))


def _guided_demo(folder: Path) -> GuidedDemo:
    from rehrseg_nnunet.cli.demo_guided import GuidedDemo

    return GuidedDemo(folder)


class Demo(DemoFolder):
    """REHRSeg: thick slices of phantoms, baseline, stage 1, stage 2, tables, a page.

    Args:
        folder: folder that nnU-Net's environment variables point into.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.source = folder / "nnUNet_raw" / f"Dataset{SOURCE_ID:03d}_Phantom"

    def prepare(self) -> None:
        """Phantom, thick slices, nnU-Net's planning and preprocessing, the demo preset."""
        from rehrseg_nnunet.cases.phantom import write_phantom_dataset
        from rehrseg_nnunet.cli.simulate import simulate
        from rehrseg_nnunet.config.rehrseg import BLOCK

        print(f"1/6 {CASES} phantoms, thick slices by a factor of {FACTOR}, nnU-Net's planning and preprocessing")
        write_phantom_dataset(self.source, cases=CASES, shape=SHAPE, seed=SEED)
        with self.quiet():
            self.thick = simulate(str(SOURCE_ID), THICK_ID, factor=FACTOR, axis="z")
        self.plan(THICK_ID, methods=(BLOCK,))

    def train_all(self) -> None:
        """Baseline, the same continued, stage 1 and stage 2."""
        for title, trainer, epochs in (
            ("2/6 baseline", "nnUNetTrainer", BASELINE_EPOCHS),
            ("3/6 baseline, continued", "ContinuedBaselineTrainer", STAGE_2_EPOCHS),
            ("4/6 stage 1: self-super-resolution", "SelfSRTrainer", None),
            ("5/6 stage 2: REHRSeg", "REHRSegTrainer", STAGE_2_EPOCHS),
        ):
            self.train(title, trainer, number=THICK_ID, epochs=epochs)

    def fold_folder(self, trainer_name: str) -> Path:
        """nnU-Net's folder of a training."""
        return self.fold_of(self.thick.name, trainer_name)

    def predict_command(self) -> str:
        """A command that segments a phantom with what was trained."""
        model, scan = self.fold_folder("REHRSegTrainer").parent, sorted((self.thick / "imagesTr").iterdir())[0]
        words = ["rehrseg", "predict", "-m", model, "-i", scan, "-o", self.folder / "segmentation.nii.gz"]
        return shlex.join(map(str, words))

    def tables(self) -> str:
        """LR and HR Dice and HD95 of the validation cases."""
        from rehrseg_nnunet.evaluation.fold_comparison import brief_table, compare_fold

        print("6/6 LR and HR comparison on the validation cases")
        with self.quiet():
            lr, hr = compare_fold(
                raw_folder=self.thick,
                fold_folders={
                    "baseline": self.fold_folder("nnUNetTrainer"),
                    "baseline, continued": self.fold_folder("ContinuedBaselineTrainer"),
                    "REHRSeg": self.fold_folder("REHRSegTrainer"),
                },
                factor=FACTOR,
                axis=0,
                output_folder=self.folder / "comparison",
            )
        return (
            f"\nThick slices (LR)\n\n{brief_table(lr)}\n\n"
            f"Thin slices (HR), against the true HR labels\n\n{brief_table(hr)}"
        )

    def closing(self, minutes: float) -> str:
        """What is said at the end; writes the page."""
        page = self.write_page()
        return CLOSING.format(minutes=minutes, folder=self.folder, page=page, predict=self.predict_command())

    def write_page(self) -> Path:
        """The page of the REHRSeg fold."""
        from rehrseg_nnunet.report.folds import WantedFolds, read_folds
        from rehrseg_nnunet.report.page import write_page

        file = self.folder / "report.html"
        wanted = WantedFolds(str(THICK_ID), CONFIGURATION, (str(FOLD),), plans=PLANS)
        with self.quiet(), tempfile.TemporaryDirectory(prefix="rehrseg-report-") as scratch:
            write_page(read_folds(wanted, Path(scratch)), file)
        return file
