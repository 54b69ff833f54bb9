"""Guidance, second training: the knowledge keeper, from the usual scan to the teacher's features of the better one."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.guided.adversary import Adversary, OptimizerPair, descend
from rehrseg_nnunet.guided.frozen import TEACHER, FrozenTeacher, open_teacher
from rehrseg_nnunet.guided.keeper import KeeperNetwork
from rehrseg_nnunet.guided.losses import KeeperLoss, feature_error, matching_error
from rehrseg_nnunet.guided.networks import build_discriminator, build_keeper, hash_tensor
from rehrseg_nnunet.guided.report import RECONSTRUCTED, report_keeper
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.precision import mixed_precision
from rehrseg_nnunet.nnunet.schedules import RatePerStep
from rehrseg_nnunet.restoration.image_training import refuse_prediction


class KnowledgeKeeperTrainer(PairedTraining, PluginTrainer, nnUNetTrainer):
    """Learns to give from the source image what the teacher sees in the privileged one, and synthesises that.

    Needs the teacher (GuidanceTeacherTrainer) of the same dataset, plans, configuration and fold, which is checked when
    training starts. After training it writes the validation cases' synthesised images and a report. Settings: the
    plans' `guidance` block. Raises at construction for cascades and datasets without privileged channels, before
    anything is written.
    """

    stage = "keeper"
    extra_metrics = (*PairedTraining.extra_metrics, "feature_error", "matching_error")
    loss: KeeperLoss
    optimizer: OptimizerPair
    teacher: FrozenTeacher

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> KeeperNetwork:
        """The keeper; nnU-Net's predictor (the only caller without deep supervision) is refused."""
        refuse_prediction(
            "KnowledgeKeeperTrainer",
            enable_deep_supervision=enable_deep_supervision,
            instead="gives images, not segmentations: use rehrseg synthesize",
        )
        return build_keeper(configuration_manager.configuration)

    @property
    def augments_intensities(self) -> bool:
        """Whether the settings want nnU-Net's full augmentation."""
        return self.config.keeper.source_augmentation == "full"

    def _build_loss(self) -> KeeperLoss:
        weights = self.config.keeper
        return KeeperLoss(
            self.image_range.tolist(),
            distillation_weight=weights.distillation_weight,
            matching_weight=weights.matching_weight,
            image_weight=weights.image_weight,
            adversarial_weight=weights.adversarial_weight,
        ).to(self.device)

    def configure_optimizers(self) -> tuple[OptimizerPair, RatePerStep]:
        """Adam for the keeper and, if there is one, for its adversary."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam(trained, lr=self.initial_lr, weight_decay=self.weight_decay)
        optimizer = OptimizerPair(adam, self._build_adversary())
        return optimizer, self.schedule(optimizer)

    def _build_adversary(self) -> Adversary | None:
        weight = self.config.keeper.adversarial_weight
        if weight == 0:
            return None
        discriminator = build_discriminator(self.configuration_manager.configuration).to(self.device)
        self.print_to_log_file(f"adversary with {len(discriminator.blocks)} strided blocks")
        adversary = Adversary(discriminator, learning_rate=self.initial_lr, weight=weight)
        if self.is_ddp:
            adversary.distribute([self.local_rank])
        return adversary

    def on_train_start(self) -> None:
        """Find the teacher, then as in nnU-Net."""
        TEACHER.require(FoldRun.of_trainer(self))  # before the network is built
        if not self.was_initialized:
            self.initialize()
        self.learn_from(self.find_teacher())
        super().on_train_start()

    def find_teacher(self) -> FrozenTeacher:
        """The finished teacher, checked."""
        configuration = self.configuration_manager.configuration
        return open_teacher(FoldRun.of_trainer(self), configuration, checkpoint=self.config.checkpoint)

    def learn_from(self, teacher: FrozenTeacher) -> None:
        """Take a teacher's features and decoder, and its unit of intensity.

        Raises:
            ValueError: the training that is continued had another teacher.
        """
        network: Any = unwrap(self.network)
        if self._resumed and not self._is_of(teacher):
            raise ValueError(
                f"{teacher.checkpoint} must be the teacher that this training was begun with, got other weights; put "
                "that teacher back, or train without --c"
            )
        network.take_from(teacher.network)
        network.teacher_sha256.copy_(hash_tensor(teacher.sha256))
        self.set_image_range(teacher.network.get_buffer("image_range"))
        teacher.network.to(self.device)
        self.teacher = teacher
        self.print_to_log_file(f"teacher: {teacher.checkpoint} (weights {teacher.sha256[:12]})")

    def _is_of(self, teacher: FrozenTeacher) -> bool:
        own = unwrap(self.network).get_buffer("teacher_sha256")
        return torch.equal(own.cpu(), hash_tensor(teacher.sha256))

    def train_step(self, batch: dict) -> dict:
        """A step of the adversary, then one of the keeper."""
        self.next_rate()
        pairs = self.on_device(batch)
        adversary = self.optimizer.adversary
        with torch.no_grad(), mixed_precision(self.device):
            features = self.teacher.network.features(pairs.privileged)
        with mixed_precision(self.device):
            output = self.network(pairs.source)
        judged = {}
        if adversary is not None:
            own = adversary.train_step(pairs.privileged, output.image.detach(), self.grad_scaler)
            judged = {"adversary_loss": own.cpu().numpy()}
        with mixed_precision(self.device):
            scores = None if adversary is None else adversary.scores(output.image)
            loss = self.loss(output, features, pairs.privileged, scores)
        descend(loss, self.optimizer.own, self.network.parameters(), self.grad_scaler)
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy(), **judged}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As in nnU-Net; prints the adversary's loss."""
        losses = [float(output["adversary_loss"]) for output in train_outputs if "adversary_loss" in output]
        if losses:
            self.print_to_log_file(f"adversary's loss {sum(losses) / len(losses):.4f}")
        super().on_train_epoch_end(train_outputs)

    def validation_step(self, batch: dict) -> dict:
        """Loss, image metrics, and how near the guides are to the teacher's features."""
        pairs = self.on_device(batch)
        adversary = self.optimizer.adversary
        with mixed_precision(self.device):
            features = self.teacher.network.features(pairs.privileged)
            output = self.network(pairs.source)
            scores = None if adversary is None else adversary.scores(output.image)
            loss = self.loss(output, features, pairs.privileged, scores)
            errors = {
                "feature_error": feature_error(output.guides, features).cpu().numpy(),
                "matching_error": matching_error(output.guides, features).cpu().numpy(),
            }
        return {"loss": loss.cpu().numpy(), **errors, **self.score(pairs, output.image)}

    def teacher_at_hand(self) -> nn.Module | None:
        """The teacher of this training, None if it is gone or another one has taken its place: `--val` does without."""
        try:
            teacher = self.find_teacher()
        except (FileNotFoundError, ValueError) as error:
            self.print_to_log_file(f"the report has no {RECONSTRUCTED}: {error}")
            return None
        if not self._is_of(teacher):
            self.print_to_log_file(f"the report has no {RECONSTRUCTED}: {teacher.checkpoint} is another teacher now")
            return None
        return teacher.network.to(self.device)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the synthesised validation images, pictures of some, and `synthesis_report.json`."""
        report_keeper(self, self.teacher_at_hand())
