"""The self-SR's report: comparisons with known truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan
from torch import nn

from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.restoration.report import NEAREST, SIGNED_DISTANCE, Comparison, mean_scores, method_scores
from rehrseg_nnunet.self_sr import report as module
from rehrseg_nnunet.self_sr.calibration import Calibration
from rehrseg_nnunet.self_sr.export import ExportOptions, PseudoHRVolumes, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSROutput, interpolate_middle
from rehrseg_nnunet.self_sr.report import (
    SELF_SR,
    TRUE_HR,
    WITH_SMORE,
    report_self_sr,
    restoration_scores,
    uncertainty_scores,
)
from rehrseg_nnunet.self_sr.simulated_cases import simulated_case
from rehrseg_nnunet.self_sr.uncertainty_quality import CEILING
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

FACTOR = 2
NETWORK_ALONE = ExportConfig(back_projection_steps=0, uncertainty="calibrated")
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)


class Oracle(nn.Module):
    """Interface of the self-SR network; knows the HR volume and adds a known error, which U ranks."""

    def __init__(self, image, labels, error=0.05):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.factor = FACTOR
        self.weight = nn.Parameter(torch.zeros(1))
        self.error = error * torch.rand(image.shape[1:], generator=rng)
        one_hot = torch.stack([torch.from_numpy(labels[0] == label) for label in range(3)]).float()
        self.volume = torch.cat([torch.from_numpy(image) + self.error, one_hot, self.error[None]])
        self.next = -1

    def forward(self, window):
        parts = []
        for _ in window:
            first = FACTOR * self.next + FACTOR // 2
            index = torch.arange(first, first + FACTOR).clamp(0, self.volume.shape[1] - 1)
            parts.append(self.volume[:, index])
            self.next = -1 if self.next == self.volume.shape[1] // FACTOR - 1 else self.next + 1
        batch = torch.stack(parts)
        return SelfSROutput(batch[:, :-4], batch[:, -4:-1], batch[:, -1:])


class Interpolating(nn.Module):
    """The same interface; interpolates linearly."""

    def __init__(self, image_channels=1, factor=FACTOR):
        super().__init__()
        self.factor, self.image_channels = factor, image_channels
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, window):
        maps = interpolate_middle(window, self.factor)
        image, labels = maps[:, : self.image_channels], maps[:, self.image_channels :]
        return SelfSROutput(image, labels, torch.rand_like(image[:, :1]))


@pytest.fixture(scope="module")
def phantom():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    return (image[None] / 50).astype(np.float32), labels[None].astype(np.int16)


def thick(image, labels):
    return (
        degrade(torch.from_numpy(image), FACTOR, 1).numpy(),
        degrade_labels(torch.from_numpy(labels), FACTOR, 1).numpy(),
    )


def test_the_restored_case_is_scored_beside_plain_interpolation(phantom):
    image, labels = phantom
    lr = thick(image, labels)
    own = IntensityUnit(zero=(0.0,), length=(1.0,))  # the oracle's
    hr = super_resolve_case(Oracle(image, labels), *lr, PLAIN, config=NETWORK_ALONE, unit=own)
    comparison = Comparison("x", lr, phantom, (2, 1, 1))
    scores = restoration_scores(comparison, hr, PLAIN, method="ours")
    assert list(scores) == [NEAREST, SIGNED_DISTANCE, "ours"]
    expected = method_scores(comparison, {"ours": (hr.image, hr.labels)}, PLAIN)
    for method, row in expected.items():
        assert {key: scores[method][key] for key in row} == row
    assert "spearman" not in scores[NEAREST]
    assert scores["ours"]["dice"] == 1
    assert scores["ours"]["spearman"] == pytest.approx(1, abs=1e-3)
    assert scores["ours"]["psnr"] > scores[NEAREST]["psnr"] + 10


def test_u_is_ranked_by_the_mean_error_of_the_channels(phantom):
    image, labels = phantom
    both = np.concatenate([image, image])
    rng = np.random.default_rng(0)
    error = rng.normal(size=both.shape).astype(np.float32)
    u = np.abs(error).mean(axis=0)[None]
    hr = PseudoHRVolumes(image=both + error, uncertainty=u, network_uncertainty=u, labels=labels, logits=u)
    comparison = Comparison("x", thick(both, labels), (both, labels), (2, 1, 1))
    assert restoration_scores(comparison, hr, PLAIN, method="ours")["ours"]["spearman"] == pytest.approx(1, abs=1e-4)


def memory_dataset(cases):
    return SimpleNamespace(identifiers=list(cases), load_case=lambda i: (*cases[i], None, {"spacing": [2, 1, 1]}))


def report(phantom, folder, *, names=("b", "a"), config=NETWORK_ALONE, smore=None, figures=1):
    """Of cases with the same image, and the interpolated case."""
    lr = thick(*phantom)
    spacing = (2.0, 1.0, 1.0)
    fine = (phantom[0], interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=spacing)[None])
    found = report_self_sr(
        Interpolating(),
        memory_dataset(dict.fromkeys(names, lr)),
        memory_dataset(dict.fromkeys(names, fine)),
        plan(PLAIN, factor=FACTOR, spacing_mm=spacing, raw_folder=folder / "Dataset001_None"),
        figure_folder=folder,
        options=ExportOptions(config, smore=smore),
        figures=figures,
    )
    return found, fine


def test_the_whole_report(phantom, tmp_path, capsys):
    found, fine = report(phantom, tmp_path)
    assert "report: 100%" in capsys.readouterr().err
    assert found.restoration.cases == {"simulated along y": 2, "simulated along x": 2}
    for axis, name in ((1, "simulated along y"), (2, "simulated along x")):
        expected = []
        for upper_ties in (False, True):  # ties take turns from case to case
            simulated, truth = simulated_case(*fine, FACTOR, axis, upper_ties=upper_ties)
            hr = super_resolve_case(Interpolating(), *simulated, PLAIN, config=NETWORK_ALONE)
            comparison = Comparison(name, simulated, truth, (2, 1, 1))
            expected.append(restoration_scores(comparison, hr, PLAIN, method=SELF_SR))
        means = mean_scores(expected)
        for method in (NEAREST, SIGNED_DISTANCE):
            assert found.restoration.comparisons[name][method] == pytest.approx(means[method])
        for key in ("psnr", "ssim", "dice"):
            assert found.restoration.comparisons[name][SELF_SR][key] == pytest.approx(means[SELF_SR][key])
    assert [file.name for file in tmp_path.iterdir()] == ["pseudo_hr_a.png"]
    assert found.as_table().count("simulated along x (n=2)") == 3 + 4  # restorations; three maps and the ceiling
    for rows in found.uncertainty.comparisons.values():
        assert list(rows) == ["U", "network's U", "entropy", CEILING]
    scores = found.as_scores()
    assert (
        scores["stage_1/simulated along y/psnr"] == found.restoration.comparisons["simulated along y"][SELF_SR]["psnr"]
    )
    assert (
        scores["stage_1/simulated along x/U auroc"] == found.uncertainty.comparisons["simulated along x"]["U"]["auroc"]
    )
    assert not any("nearest" in name or "entropy" in name for name in scores)
    assert found.as_dict()["comparisons"] == found.restoration.comparisons
    assert found.as_dict()["uncertainty"]["cases"] == found.uncertainty.cases == found.restoration.cases


def test_the_truth_is_compared_where_it_is_known(phantom, tmp_path, monkeypatch):
    asked = []

    def known(planned, identifier, lr_image, properties):
        asked.append((planned.factor, identifier, lr_image.shape, properties))
        return phantom if identifier == "b" else None

    monkeypatch.setattr(module, "true_hr_case", known)
    found, _ = report(phantom, tmp_path)
    assert [identifier for _, identifier, _, _ in asked] == ["a", "b"]
    assert asked[0] == (FACTOR, "a", (1, 8, 16, 16), {"spacing": [2, 1, 1]})
    assert found.restoration.cases[TRUE_HR] == 1
    lr = thick(*phantom)
    hr = super_resolve_case(Interpolating(), *lr, PLAIN, config=NETWORK_ALONE)
    expected = restoration_scores(Comparison(TRUE_HR, lr, phantom, (2.0, 1.0, 1.0)), hr, PLAIN, method=SELF_SR)
    assert list(found.restoration.comparisons[TRUE_HR]) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
    assert found.restoration.comparisons[TRUE_HR][SELF_SR]["dice"] == pytest.approx(expected[SELF_SR]["dice"])
    assert found.restoration.comparisons[TRUE_HR][NEAREST] == pytest.approx(expected[NEAREST])


@pytest.mark.parametrize(("setting", "method"), [("smore", WITH_SMORE), ("self_sr", SELF_SR)])
def test_an_image_by_smore_is_told(phantom, tmp_path, monkeypatch, setting, method):
    monkeypatch.setattr(module, "true_hr_case", lambda *_: phantom)
    noise = np.random.default_rng(0).normal(scale=1e-4, size=phantom[0].shape)
    smore = memory_dataset(dict.fromkeys("ab", (phantom[0] + noise, phantom[1])))
    config = NETWORK_ALONE.model_copy(update={"image": setting})
    found, _ = report(phantom, tmp_path, config=config, smore=smore)
    assert list(found.restoration.comparisons[TRUE_HR]) == [NEAREST, SIGNED_DISTANCE, method]
    assert (found.restoration.comparisons[TRUE_HR][method]["psnr"] > 80) == (method == WITH_SMORE)
    for name in ("simulated along y", "simulated along x"):  # simulated cases have none
        assert list(found.restoration.comparisons[name]) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
        assert found.restoration.comparisons[name][SELF_SR]["psnr"] < 80


@pytest.mark.parametrize(("truth", "figures", "restored"), [(True, 1, 3), (True, 3, 3), (False, 1, 1), (False, 0, 0)])
def test_every_case_is_restored_once_and_only_where_it_is_needed(
    phantom, tmp_path, monkeypatch, truth, figures, restored
):
    whole, stock = [], module.super_resolve_case
    thick_image = thick(*phantom)[0]

    def noted(network, image, *arguments, **options):
        whole.append(np.array_equal(image, thick_image))
        return stock(network, image, *arguments, **options)

    monkeypatch.setattr(module, "super_resolve_case", noted)
    monkeypatch.setattr(module, "true_hr_case", lambda *_: phantom if truth else None)
    report(phantom, tmp_path, names="abc", figures=figures)
    assert len(whole) == 6 + restored  # two simulated cases of each
    assert sum(whole) == restored
    assert len(list(tmp_path.iterdir())) == figures


def test_u_is_judged_as_stage_2_gets_it(phantom):
    """Calibrated to be the same everywhere, it marks nothing."""
    lr = thick(*phantom)
    comparison = Comparison("x", lr, phantom, (2, 1, 1))
    hr = super_resolve_case(Interpolating(), *lr, PLAIN, config=NETWORK_ALONE)
    flat = ExportOptions(NETWORK_ALONE, calibration=Calibration(uncertainty=(0, 1), wrong=(0.25, 0.25)))
    rows = uncertainty_scores(comparison, hr, PLAIN, flat)
    assert rows["U"]["auroc"] == 0.5
    assert rows["U"]["edge"] == rows["U"]["inside"] == rows["U"]["phase 1"] == 0.25
    assert rows["entropy"]["auroc"] > 0.6
    assert uncertainty_scores(comparison, hr, PLAIN, ExportOptions(NETWORK_ALONE))["U"]["edge"] != 0.25


def test_the_labels_own_entropy_is_what_stage_2_gets_by_default(phantom):
    lr = thick(*phantom)
    comparison = Comparison("x", lr, phantom, (2, 1, 1))
    config = ExportConfig(back_projection_steps=0)
    hr = super_resolve_case(Interpolating(), *lr, PLAIN, config=config)
    same = ExportOptions(config, calibration=Calibration(uncertainty=(0, 2), wrong=(0, 1)))  # U / 2
    rows = uncertainty_scores(comparison, hr, PLAIN, same)
    assert rows["U"]["auroc"] == rows["entropy"]["auroc"] > rows["network's U"]["auroc"]
    assert rows["U"]["edge"] == pytest.approx(rows["entropy"]["edge"] / 2)
