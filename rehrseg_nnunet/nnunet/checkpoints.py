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
ABSENT = "not there"
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
        except RuntimeError as error:
            if "state_dict" not in str(error):  # of torch: weights that the network lacks, or of other sizes
                raise
            changed = self._changed_settings(checkpoint)
            if not changed:
                raise
            raise ValueError(
                f"the checkpoint in {self.output_folder} is not of the network that the plans describe; since then "
                f"these have changed: {'; '.join(changed)}; put back what builds the network, and train with other "
                "values under plans of another name"
            ) from error

    def _changed_settings(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Settings of the plans that were other ones when a checkpoint was saved; none if it does not say them."""
        try:
            stored = settings_of(checkpoint["init_args"]["plans"], self.configuration_name)
        except (KeyError, RuntimeError):  # of something else than nnU-Net, or of another configuration
            return []
        now = settings_of(self.plans_manager.plans, self.configuration_name)
        return [
            f"{key} was {stored.get(key, ABSENT)} and is {now.get(key, ABSENT)}"
            for key in sorted(stored.keys() | now.keys())
            if stored.get(key, ABSENT) != now.get(key, ABSENT)
        ]


def settings_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The values of a configuration, inheritance resolved, by path: `{"guidance.fusion.hidden": 0.25, ...}`."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, Mapping):
            yield path, list(value) if isinstance(value, tuple) else value
            return
        for key, below in value.items():
            yield from walk(below, f"{path}.{key}" if path else key)

    return dict(walk(PlansManager(dict(plans)).get_configuration(configuration).configuration, ""))
