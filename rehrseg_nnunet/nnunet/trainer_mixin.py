"""Base of the mixins for nnU-Net trainers: see `TrainerMixin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as TrainerMixin
else:

    class TrainerMixin:
        """What stands before `nnUNetTrainer` in a trainer's bases and reaches it by `super()`.

        Type checkers take it for `nnUNetTrainer` itself, whose attributes and methods mixins use. When a program runs
        it is empty, so a mixin goes with any subclass of `nnUNetTrainer`.
        """
