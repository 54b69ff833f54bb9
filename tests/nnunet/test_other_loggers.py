"""Weights & Biases gets our values through nnU-Net's own logger, offline and without its package."""

from types import SimpleNamespace

import pytest
from nnunetv2.training.logging import nnunet_logger

from rehrseg_nnunet.nnunet.other_loggers import log_elsewhere, summarise_elsewhere


@pytest.fixture
def run(monkeypatch):
    """What `wandb.init` returned: it notes what it is handed."""
    logged = []
    config = SimpleNamespace(update=lambda values: None)
    run = SimpleNamespace(step=0, config=config, summary={}, logged=logged, options={})
    run.log = lambda values, step: logged.append((step, values))

    def init(**options):
        run.options = options
        return run

    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    return run


def meta_logger(tmp_path, monkeypatch, enabled):
    monkeypatch.setenv("nnUNet_wandb_enabled", enabled)
    return nnunet_logger.MetaLogger(str(tmp_path), False)


def test_values_of_epochs_and_of_the_whole_training(run, tmp_path, monkeypatch):
    logger = meta_logger(tmp_path, monkeypatch, "1")
    assert run.options["mode"] == "offline"
    before = {name: list(values) for name, values in logger.get_checkpoint().items()}
    log_elsewhere(logger, {"loss/lr": -0.5, "loss/hr": -0.25}, step=3)
    summarise_elsewhere(logger, {"stage_1/true HR/psnr": 28.5})
    assert run.logged == [(3, {"loss/lr": -0.5}), (3, {"loss/hr": -0.25})]
    assert run.summary["stage_1/true HR/psnr"] == 28.5
    assert logger.get_checkpoint() == before  # checkpoints stay nnU-Net's


def test_nothing_is_logged_where_nnunet_logs_nowhere_else(run, tmp_path, monkeypatch):
    logger = meta_logger(tmp_path, monkeypatch, "0")
    log_elsewhere(logger, {"loss/lr": -0.5}, step=0)
    summarise_elsewhere(logger, {"stage_1/psnr": 1.0})
    assert run.logged == []
    assert run.summary == {}
