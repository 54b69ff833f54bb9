"""How a stage-2 network starts: from the fold's finished baseline if there is one, see `BaselineStart`."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.nnunet.weights import hash_weights, read_weights

BASELINE = Companion("nnUNetTrainer", "the baseline of this fold")

REMEDY = "train the baseline again or remove it"


class BaselineStart(TrainerMixin):
    """Mixin for nnU-Net trainers that go on from the fold's baseline, at a learning rate of their own.

    Order: `--c` continues this trainer's own run at its own learning rate; `-pretrained_weights` is kept; else the
    final checkpoint that `baseline_checkpoint` names; else scratch at nnU-Net's learning rate.

    Attributes:
        without_baseline: what the log says in the last case.
    """

    _initial_hash: str | None = None
    _resumed = False
    without_baseline = "no finished baseline of this fold was found: training starts from scratch"
    learning_rate_from_trained = 1e-3

    def baseline_checkpoint(self) -> Path | None:
        """The fold's finished nnUNetTrainer run, of the same length if there is one; None if there is none."""
        run = BASELINE.find(FoldRun.of_trainer(self))
        return None if run is None else run.final_checkpoint

    def initialize(self) -> None:
        """As in nnU-Net; remembers the untrained weights to notice `-pretrained_weights`."""
        super().initialize()
        self.fill_network()
        self._initial_hash = hash_weights(unwrap(self.network).state_dict())

    def fill_network(self) -> None:
        """Give the new network weights that it has whatever it starts from."""

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net, with the learning rate of the run that is continued (nnU-Net takes the class's)."""
        super().load_checkpoint(filename_or_checkpoint)
        self._resumed = True
        logged = self.logger.get_value("lrs", step=None)
        if logged:
            self.initial_lr = self.lr_scheduler.initial_lr = float(logged[0])

    def start_from_trained(self) -> None:
        """Choose the starting weights; call it before training."""
        if self._resumed:
            return
        if self._initial_hash is None:
            self.initialize()
        if hash_weights(unwrap(self.network).state_dict()) != self._initial_hash:
            source = "-pretrained_weights"
        else:
            checkpoint = self.baseline_checkpoint()
            if checkpoint is None:
                self.print_to_log_file(self.without_baseline)
                return
            load_baseline(self.network, checkpoint)
            source = str(checkpoint)
        self.initial_lr = self.learning_rate_from_trained
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.print_to_log_file(
            f"training starts from {source} (weights {hash_weights(unwrap(self.network).state_dict())[:12]}), "
            f"initial learning rate {self.initial_lr}"
        )


def load_baseline(network: nn.Module, checkpoint: Path) -> None:
    """Load a baseline of the same plans with its segmentation layers; an HR head keeps its fresh weights.

    Raises:
        ValueError: the checkpoint is unreadable or belongs to another network.
    """
    weights = read_weights(checkpoint, remedy=REMEDY)
    own = unwrap(network)
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    differing = [key for key, value in weights.items() if shapes.get(key) != value.shape]
    missing = [key for key in shapes if key not in weights and ".seg_layers." not in key]
    if differing or missing:
        raise ValueError(
            f"{checkpoint} must be of the same plans as this training, but {(differing + missing)[0]} differs; {REMEDY}"
        )
    own.load_state_dict(weights, strict=False)
