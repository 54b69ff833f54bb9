"""Checkpoints that survive a kill: see `SafeCheckpoints`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.safe_files import FULL_DISK, PARTIAL_SUFFIX, check_writable, move_into_place, partial_name
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.nnunet.weights import read_checkpoint

CHECKPOINTS = "checkpoint_*.pth"
DAMAGED = "remove it and continue with --c, from checkpoint_latest.pth or checkpoint_best.pth if there"


def checkpoint_interval(epochs: int, longest: int) -> int:
    """Epochs between two saves of checkpoint_latest.pth: a tenth of the training, at most `longest`, at least one."""
    return max(1, min(longest, epochs // 10))


class SafeCheckpoints(TrainerMixin):
    """Mixin for nnU-Net trainers: an interrupted training loses at most a tenth of itself and never a checkpoint.

    A checkpoint is written beside its final name and renamed, so a kill while it is written leaves the former one. What
    killed runs left is removed when the next one starts. Of DDP ranks only the first writes.
    """

    def initialize(self) -> None:
        """Check that the run's folder takes files, then as in nnU-Net; sets how often the latest state is saved."""
        if self.local_rank == 0:
            check_writable(
                Path(self.output_folder),
                purpose="training saves its checkpoints there; change its permissions or set nnUNet_results",
            )
        super().initialize()
        self.save_every = checkpoint_interval(self.num_epochs, self.save_every)

    def on_train_start(self) -> None:
        """As in nnU-Net, without what killed runs left."""
        if self.local_rank == 0:
            for partial in Path(self.output_folder).glob(CHECKPOINTS + PARTIAL_SUFFIX):
                partial.unlink()
        super().on_train_start()

    def save_checkpoint(self, filename: str) -> None:
        """As in nnU-Net, complete or not at all.

        Raises:
            OSError: the checkpoint could not be written; the former one is untouched.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing
            return
        file = Path(filename)
        partial = partial_name(file)
        try:
            super().save_checkpoint(str(partial))
            move_into_place(partial, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            partial.unlink(missing_ok=True)
            raise OSError(f"{file} could not be written ({error}); if the disk is full, {FULL_DISK}") from error

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net.

        Raises:
            ValueError: the file is damaged, or of a network that the plans do not describe any more.
        """
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = read_checkpoint(Path(checkpoint), remedy=DAMAGED)
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except RuntimeError as error:  # of torch: weights that the network lacks, or of other sizes
            configurations = (checkpoint["init_args"]["plans"], self.plans_manager.plans)
            before, now = (settings_of(plans, self.configuration_name) for plans in configurations)
            changed = [key for key in before.keys() & now.keys() if before[key] != now[key]]
            if not changed:
                raise
            values = "; ".join(f"{key} was {before[key]} and is {now[key]}" for key in sorted(changed))
            raise ValueError(
                f"the checkpoint in {self.output_folder} does not fit the plans, which have changed since: {values}; "
                "put these back, and train with other ones under plans of another name"
            ) from error


def settings_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The values of a configuration, inheritance resolved, by path: `{"guidance.fusion.hidden": 0.25, ...}`."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, Mapping):
            yield path, list(value) if isinstance(value, tuple) else value
            return
        for key, below in value.items():
            yield from walk(below, f"{path}.{key}" if path else key)

    return dict(walk(PlansManager(dict(plans)).get_configuration(configuration).configuration, ""))
