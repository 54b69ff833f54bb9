"""Guidance, first training: the teacher, an autoencoder of the better scan (arXiv 2402.08409)."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.guided.adversary import descend
from rehrseg_nnunet.guided.losses import TeacherLoss
from rehrseg_nnunet.guided.networks import build_teacher, check_adversary
from rehrseg_nnunet.guided.report import report_teacher
from rehrseg_nnunet.guided.teacher import Teacher
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.precision import mixed_precision
from rehrseg_nnunet.restoration.image_training import refuse_prediction


class GuidanceTeacherTrainer(PairedTraining, PluginTrainer, nnUNetTrainer):
    """Learns features of the privileged image from which it can be made again.

    KnowledgeKeeperTrainer of the same dataset, plans, configuration and fold is then taught these features. Settings:
    the plans' `guidance` block. Raises at construction for cascades and datasets without privileged channels, before
    anything is written.
    """

    stage = "teacher"
    loss: TeacherLoss

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> Teacher:
        """The teacher; nnU-Net's predictor (the only caller without deep supervision) is refused."""
        refuse_prediction(
            "GuidanceTeacherTrainer",
            enable_deep_supervision=enable_deep_supervision,
            instead="needs the better scan and gives no segmentation; KnowledgeKeeperTrainer is trained on it",
        )
        return build_teacher(configuration_manager.configuration)

    def _build_loss(self) -> TeacherLoss:
        weights = self.config.teacher
        return TeacherLoss(
            self.image_range.tolist(), image_weight=weights.image_weight, feature_weight=weights.feature_weight
        ).to(self.device)

    def on_train_start(self) -> None:
        """Refuse what no keeper can be taught on, measure the privileged channels' range, then as in nnU-Net."""
        if not self._resumed:
            check_adversary(self.configuration_manager.configuration)  # the keeper's training comes hours later
            if self.local_rank == 0:
                self.check_grids()
        if not self.was_initialized:
            self.initialize()
        if not self._resumed:
            self.measure_image_range()
        super().on_train_start()

    def train_step(self, batch: dict) -> dict:
        """One step of Adam."""
        self.next_rate()
        privileged = self.on_device(batch).privileged
        with mixed_precision(self.device):
            loss = self.loss(self.network(privileged), privileged)
        descend(loss, self.optimizer, self.network.parameters(), self.grad_scaler)
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict) -> dict:
        """Loss and image metrics."""
        pairs = self.on_device(batch)
        with mixed_precision(self.device):
            output = self.network(pairs.privileged)
            loss = self.loss(output, pairs.privileged)
        return {"loss": loss.cpu().numpy(), **self.score(pairs, output.image)}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Say how well the teacher makes the validation cases again, in `teacher_report.json`."""
        report_teacher(self)
