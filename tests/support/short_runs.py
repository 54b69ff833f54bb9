"""Short trainings: `python short_runs.py COMMAND ...` runs one of nnU-Net's commands with a few steps per training."""

import importlib
import os
import sys

# where setup.cfg of nnU-Net has its commands
COMMANDS = {
    "nnUNetv2_train": ("nnunetv2.run.run_training", "run_training_entry"),
    "nnUNetv2_predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
}
EPOCHS, STEPS = "REHRSEG_TEST_EPOCHS", "REHRSEG_TEST_STEPS"


def shorten(set_attribute=setattr):
    """Every training lasts as many epochs of as many steps as the two variables say (2 and 2), the rest as it is."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    initialize = nnUNetTrainer.initialize

    def short(self):
        self.num_epochs = int(os.environ.get(EPOCHS, "2"))
        self.num_iterations_per_epoch = int(os.environ.get(STEPS, "2"))
        self.num_val_iterations_per_epoch = 1
        initialize(self)

    set_attribute(nnUNetTrainer, "initialize", short)


def main():
    """Run a command."""
    module, function = COMMANDS[sys.argv[1]]
    del sys.argv[0]
    shorten()
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()
