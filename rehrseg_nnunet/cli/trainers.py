"""Print the folder that nnUNet_extTrainer must name."""

from __future__ import annotations

import argparse

from rehrseg_nnunet.nnunet.trainer_path import VARIABLE, ensure_trainer_path, trainers_folder

__all__ = ["VARIABLE", "add_arguments", "ensure_trainer_path", "run", "trainers_folder"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""
    parser.epilog = f'use it as: export {VARIABLE}="$(rehrseg trainers)"'


def run(args: argparse.Namespace) -> None:
    """Print the folder."""
    print(trainers_folder())
