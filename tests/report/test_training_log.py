"""Logs are read as nnU-Net and the trainers write them."""

from datetime import datetime

import pytest
from report_cases import log_text

from rehrseg_nnunet.report.training_log import read_logs


def test_every_quantity_of_every_epoch(tmp_path):
    (tmp_path / "training_log_1.txt").write_text(log_text())
    log = read_logs(tmp_path)
    assert log.series("train loss") == ([0, 1], [-1.4495, -1.5])
    assert log.series("val loss") == ([0, 1], [-0.7477, -0.70])
    assert log.series("learning rate") == ([0, 1], [0.01, 0.005])
    assert log.series("pseudo Dice") == ([0, 1], [pytest.approx((0.8243 + 0.7977) / 2), 0.9])
    assert log.terms == ["loss lr", "loss hr", "loss affinity"]
    assert log.series("loss affinity")[1] == [1e-5, 2e-5]
    assert (log.number_of_epochs, log.duration) == (2, "5 min")
    assert log.began == datetime(2026, 1, 2, 3, 4, 5)
    assert log.ended == datetime(2026, 1, 2, 3, 13, 5)


def test_warnings_and_start_without_folders(tmp_path):
    (tmp_path / "training_log_1.txt").write_text(log_text())
    log = read_logs(tmp_path)
    assert log.start == ("training starts from checkpoint_final.pth (weights 1a805471d328), initial rate 0.01")
    assert log.warnings == ["case_1: its pseudo-HR labels in pseudo_hr, made thick again, have Dice 0.700"]


def test_the_results_folder_may_have_spaces(tmp_path):
    folder = tmp_path / "my results" / "Dataset" / "T__P__C" / "fold_0"
    folder.mkdir(parents=True)
    text = log_text().replace("/data/results/fold_0", str(folder))
    (folder / "training_log_1.txt").write_text(text)
    assert read_logs(folder).start.startswith("training starts from Dataset/T__P__C/fold_0/checkpoint_final.pth")


def test_image_metrics_of_stage_1(tmp_path):
    line = "2026-11-27 04:01:25.142543: "
    lines = ["Epoch 7 ", "psnr 27.0274, ssim 0.781, uncertainty_spearman -0.0198 ", "Epoch time: 6.84 s "]
    (tmp_path / "training_log_1.txt").write_text("\n".join(line + text for text in lines))
    log = read_logs(tmp_path)
    assert {name: log.series(name) for name in log.epochs} == {
        "psnr": ([7], [27.0274]),
        "ssim": ([7], [0.781]),
        "uncertainty_spearman": ([7], [-0.0198]),
        "seconds": ([7], [6.84]),
    }


def test_a_resumed_training_counts_a_repeated_epoch_once(tmp_path):
    (tmp_path / "training_log_1.txt").write_text(log_text())
    begin = datetime(2026, 2, 1)
    (tmp_path / "training_log_2.txt").write_text(log_text(begin).replace("Epoch 1", "Epoch 2").replace("-1.4495", "-9"))
    log = read_logs(tmp_path)
    assert log.series("train loss") == ([0, 1, 2], [-9, -1.5, -1.5])
    assert log.ended > begin


def test_a_folder_without_logs_has_no_epochs(tmp_path):
    log = read_logs(tmp_path)
    assert (log.number_of_epochs, log.epochs, log.began) == (0, {}, None)
