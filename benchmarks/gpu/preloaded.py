"""What the server process imports, once for all tasks: their functions and every trainer.

nnU-Net looks for a trainer by importing all modules of its own trainers first, which takes seconds in each process.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from benchmarks.gpu import correctness, cost, memory_faults, quality
from benchmarks.gpu.parts import BASE, BOTH_METHODS, GUIDED, NOISELESS_TEACHER, OURS
from rehrseg_nnunet.cli.trainers import ensure_trainer_path

__all__ = ["correctness", "cost", "memory_faults", "quality"]

ensure_trainer_path()
with redirect_stdout(io.StringIO()):  # nnU-Net tells of every module
    for _name in (*BASE, *OURS, *GUIDED, BOTH_METHODS, NOISELESS_TEACHER):
        recursive_find_trainer_class_by_name(_name)
