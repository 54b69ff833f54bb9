"""Base of the mixins for nnU-Net trainers: see `TrainerMixin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from torch import nn
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import Optimizer

    class TrainerMixin(nnUNetTrainer):
        """What nnU-Net's constructor leaves None, as `initialize` fills it, and what nnU-Net does not declare."""

        num_input_channels: int
        network: nn.Module
        optimizer: Optimizer
        lr_scheduler: PolyLRScheduler
        loss: nn.Module
        grad_scaler: GradScaler | None
        dataset_class: type[nnUNetDatasetBlosc2] | type[nnUNetDatasetNumpy]
        preprocessed_dataset_folder: str
        output_folder: str
        output_folder_base: str

        def do_split(self) -> tuple[list[str], list[str]]:
            """Training and validation cases."""
            ...

        @staticmethod
        def get_training_transforms(*args: Any, **options: Any) -> ComposeTransforms:
            """Declared by nnU-Net with other types than it passes and returns."""
            ...

        @staticmethod
        def get_validation_transforms(*args: Any, **options: Any) -> ComposeTransforms:
            """As above."""
            ...

else:

    class TrainerMixin:
        """What stands before `nnUNetTrainer` in a trainer's bases and reaches it by `super()`.

        Type checkers take it for `nnUNetTrainer` itself, whose attributes and methods mixins use. When a program runs
        it is empty, so a mixin goes with any subclass of `nnUNetTrainer`.
        """
