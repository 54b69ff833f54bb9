"""Short trainings: `main` runs one of nnU-Net's commands, which `Command` gives it, with a few steps per training."""

import importlib
import multiprocessing
import os
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import faults

# where setup.cfg of nnU-Net has its commands
COMMANDS = {
    "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
    "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
}
EPOCHS, STEPS = "REHRSEG_TEST_EPOCHS", "REHRSEG_TEST_STEPS"
PROGRESS = "REHRSEG_TEST_PROGRESS"  # draw progress.png
FAULT = "REHRSEG_TEST_FAULT"  # an expression of faults.py
# that wait for their pools by sleeping
WAITING = (
    "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnunetv2.inference.predict_from_raw_data",
    "rehrseg_nnunet.prediction.fold_validation",
)


def shorten(set_attribute=setattr):
    """Every training lasts as many epochs of as many steps as the two variables say (2 and 2), the rest as it is.

    `progress.png` and stage 1's pictures take longer than such a training: they are empty files unless the variable
    PROGRESS is set, and `progress.png` then drawn after the last epoch. nnU-Net's commands, which would have as many
    threads of PyTorch as there are cores, have one: tests run side by side.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from rehrseg_nnunet.self_sr import report

    initialize, draw = nnUNetTrainer.initialize, report._draw

    def picture(images, uncertainty, spacing, file):
        if PROGRESS in os.environ:
            draw(images, uncertainty, spacing, file)
        else:
            file.touch()

    def short(self):
        self.num_epochs = int(os.environ.get(EPOCHS, "2"))
        self.num_iterations_per_epoch = int(os.environ.get(STEPS, "2"))
        self.num_val_iterations_per_epoch = 1
        plot = self.logger.plot_progress_png
        drawn = self.num_epochs - 1 if PROGRESS in os.environ else None
        self.logger.plot_progress_png = lambda folder: (
            plot(folder) if self.current_epoch == drawn else Path(folder, "progress.png").touch()
        )
        initialize(self)

    set_attribute(nnUNetTrainer, "initialize", short)
    set_attribute(report, "_draw", picture)
    torch.set_num_threads(1)
    set_attribute(torch, "set_num_threads", lambda number: None)


def draw_few_intensities(set_attribute=setattr):
    """Fingerprints draw 100,000 intensities a channel, not 100 million: phantoms have a few thousand voxels."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    start = DatasetFingerprintExtractor.__init__

    def few(self, *args, **options):
        start(self, *args, **options)
        self.num_foreground_voxels_for_intensitystats = 1e5

    set_attribute(DatasetFingerprintExtractor, "__init__", few)


def use_threads(set_attribute=setattr):
    """nnU-Net's spawned pools, and the forked one that lists the files of a folder, run as threads of this process."""
    from nnunetv2.utilities import utils

    set_attribute(utils, "Pool", ThreadPool)
    pools = SimpleNamespace(Pool=ThreadPool)
    original = multiprocessing.get_context
    set_attribute(multiprocessing, "get_context", lambda m=None: pools if m == "spawn" else original(m))
    for name in WAITING:
        set_attribute(importlib.import_module(name), "sleep", lambda seconds: time.sleep(min(seconds, 0.005)))


def main():
    """Run a command."""
    module, function = COMMANDS[sys.argv[1]]
    del sys.argv[0]
    shorten()
    eval(os.environ.get(FAULT, "None"), vars(faults))
    getattr(importlib.import_module(module), function)()
