"""Training from image to image, without nnU-Net's trainer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from rehrseg_nnunet.nnunet.label_channels import masked_value
from rehrseg_nnunet.nnunet.schedules import one_cycle
from rehrseg_nnunet.restoration import image_training as module
from rehrseg_nnunet.restoration.training import ImageToImageTraining
from rehrseg_nnunet.restoration.validation import SCORED_STEPS, restoration_metrics
from rehrseg_nnunet.smore.network import WDSROutput

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


class Logger:
    def __init__(self):
        self.local_logger = SimpleNamespace(my_fantastic_logging={"lrs": [], "ssim": [0.5]})
        self.logged = {}

    def log(self, key, value, epoch):
        self.logged.setdefault(key, {})[epoch] = value

    def get_value(self, key, step):
        return list(self.logged[key].values())[step]


class Base:
    """What the mixin uses of nnU-Net's trainer."""

    def __init__(self, *, ddp=False, batch_size=5):
        self.is_ddp, self.local_rank, self.device = ddp, 0, torch.device("cpu")
        self.configuration_manager = ConfigurationManager(
            {"architecture": {}, "batch_size": 2, "batch_dice": True, "patch_size": [4, 8, 8]}
        )
        self.settings = SimpleNamespace(batch_size=batch_size)
        self.label_manager = LABELS
        self.num_epochs, self.num_iterations_per_epoch, self.current_epoch = 3, 4, 0
        self.initial_lr, self.weight_decay = 1e-2, 0.0
        self.logger, self.lines, self.seen, self.rates = Logger(), [], [], []

    def initialize(self):
        self.network = nn.Linear(1, 1)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def load_checkpoint(self, checkpoint):
        self.logger.local_logger.my_fantastic_logging = {"lrs": [1.0]}

    def _set_batch_size_and_oversample(self):
        self.seen.append(dict(self.configuration_manager.configuration))

    def on_train_epoch_start(self):
        pass

    def on_validation_epoch_start(self):
        pass

    def train_step(self, batch):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return {"loss": 0.0}

    def on_validation_epoch_end(self, outputs):
        self.logger.log("val_losses", np.mean([output["loss"] for output in outputs]), self.current_epoch)

    def on_epoch_end(self):
        self.lines.append("nnU-Net's")

    def print_to_log_file(self, line):
        self.lines.append(line)


class Trainer(ImageToImageTraining, Base):
    pass


class TwoPhases(Trainer):
    phase_epochs = (2, 1)


def test_the_image_metrics_are_in_the_log_and_old_values_stay():
    trainer = Trainer()
    trainer.initialize()
    assert trainer.logger.local_logger.my_fantastic_logging == {"lrs": [], "psnr": [], "ssim": [0.5]}
    trainer.load_checkpoint("of a log without them")
    assert trainer.logger.local_logger.my_fantastic_logging == {"lrs": [1.0], "psnr": [], "ssim": []}


@pytest.mark.parametrize(
    ("processes", "batch_size", "expected"),
    [(None, 5, 5), (2, 5, 4), (4, 5, 4), (8, 5, 8), (3, 9, 9)],
)
def test_the_batch_is_the_settings_in_equal_shares(monkeypatch, processes, batch_size, expected):
    monkeypatch.setattr(module, "dist", SimpleNamespace(get_world_size=lambda: processes))
    trainer = Trainer(ddp=processes is not None, batch_size=batch_size)
    planned = trainer.configuration_manager
    trainer._set_batch_size_and_oversample()
    (seen,) = trainer.seen
    assert seen == {**planned.configuration, "batch_size": expected}
    assert trainer.configuration_manager is planned
    assert planned.batch_size == 2


def test_the_plans_come_back_after_an_error(monkeypatch):
    def fail(self):
        raise ValueError("as nnU-Net does")

    monkeypatch.setattr(Base, "_set_batch_size_and_oversample", fail)
    trainer = Trainer()
    planned = trainer.configuration_manager
    with pytest.raises(ValueError, match="as nnU-Net does"):
        trainer._set_batch_size_and_oversample()
    assert trainer.configuration_manager is planned


def test_adam_with_one_cycle_per_phase_and_a_rate_per_step():
    trainer = TwoPhases()
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    for trainer.current_epoch in range(3):
        trainer.on_train_epoch_start()
        for _ in range(4):
            assert trainer.train_step({}) == {"loss": 0.0}
    expected = [one_cycle(step / steps, trainer.initial_lr) for steps in (8, 4) for step in range(steps)]
    assert trainer.rates == pytest.approx(expected)


def test_without_phases_there_is_one_cycle_of_the_whole_training():
    trainer = Trainer()
    assert trainer.phase_epochs == (3,)
    trainer.num_epochs = 7
    assert trainer.phase_epochs == (7,)


def test_the_label_loss_leaves_out_what_is_masked():
    loss = Trainer().label_loss()
    logits = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
    target = torch.full((2, 1, 4, 8, 8), masked_value(LABELS))
    target[:, :, :2] = 1
    loss(logits, target).backward()
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).any()
    assert loss.dc.batch_dice


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 8, 8, generator=generator)
    output = WDSROutput(image + 0.1, torch.randn(2, 3, 8, 8, generator=generator))
    target = [image, torch.randint(3, (2, 1, 8, 8), generator=generator), torch.ones(2, 1, 8, 8)]
    return output, target


def test_a_validation_step_gives_loss_overlap_and_image_metrics():
    output, target = batch()
    trainer = Trainer()
    trainer.network = lambda data: output if data is given else None
    trainer.loss = lambda found, truth: (found.image - truth[0]).mean() + 1
    given = torch.zeros(2, 4, 4, 8)
    found = trainer.validation_step({"data": given, "target": target})
    expected = restoration_metrics(output, target, regions=False, masked=masked_value(LABELS))
    assert found.keys() == {"loss", *expected}
    assert found["loss"] == pytest.approx(1.1)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value)


def test_images_of_the_first_batches_of_every_epoch_are_scored():
    output, target = batch()
    trainer = Trainer()
    trainer.network, trainer.loss = lambda data: output, lambda found, truth: torch.tensor(1.0)
    for _ in range(2):
        trainer.on_validation_epoch_start()
        steps = [trainer.validation_step({"data": target[0], "target": target}) for _ in range(SCORED_STEPS + 2)]
        assert [bool(np.isfinite(step["psnr"])) for step in steps] == [True] * SCORED_STEPS + [False] * 2
        assert all(np.array_equal(step["tp_hard"], steps[0]["tp_hard"]) for step in steps)
        trainer.on_validation_epoch_end(steps)
        assert trainer.logger.logged["psnr"][0] == pytest.approx(float(steps[0]["psnr"]))


@pytest.mark.parametrize("others", [None, 4.0])
def test_the_epochs_mean_over_batches_and_ranks_is_logged_and_printed(monkeypatch, others):
    def gather(values, value):
        values[:] = [value, others]

    monkeypatch.setattr(module, "dist", SimpleNamespace(get_world_size=lambda: 2, all_gather_object=gather))
    trainer = Trainer(ddp=others is not None)
    steps = [{"loss": 1.0, "psnr": 1.0, "ssim": np.nan}, {"loss": 3.0, "psnr": 3.0, "ssim": 2.0}]
    trainer.on_validation_epoch_end([{key: np.array(value) for key, value in step.items()} for step in steps])
    expected = {"psnr": {0: 2.0}, "ssim": {0: 2.0}} if others is None else {"psnr": {0: 3.0}, "ssim": {0: 3.0}}
    assert trainer.logger.logged == {**expected, "val_losses": {0: 2.0}}
    trainer.on_epoch_end()
    mean = 2.0 if others is None else 3.0
    assert trainer.lines == [f"psnr {mean}, ssim {mean}", "nnU-Net's"]


def test_there_is_no_deep_supervision_to_set():
    trainer = Trainer()
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)  # nnU-Net calls it with networks that have a decoder
