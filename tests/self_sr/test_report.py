"""The self-SR's report: comparisons with known truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan
from scipy.stats import spearmanr
from torch import nn

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.restoration.report import NEAREST, SIGNED_DISTANCE, Comparison, mean_scores, method_scores
from rehrseg_nnunet.self_sr import report as module
from rehrseg_nnunet.self_sr.export import PseudoHRVolumes, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSROutput, interpolate_middle
from rehrseg_nnunet.self_sr.report import (
    RANKED_VOXELS,
    SELF_SR,
    TRUE_HR,
    WITH_SMORE,
    rank_correlation,
    report_self_sr,
    restoration_scores,
    simulated_case,
    simulated_cases,
)
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

FACTOR = 2
NETWORK_ALONE = ExportConfig(back_projection_steps=0)
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
    hr = super_resolve_case(Oracle(image, labels), *lr, PLAIN, config=NETWORK_ALONE)
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
    hr = PseudoHRVolumes(image=both + error, uncertainty=u, labels=labels)
    comparison = Comparison("x", thick(both, labels), (both, labels), (2, 1, 1))
    assert restoration_scores(comparison, hr, PLAIN, method="ours")["ours"]["spearman"] == pytest.approx(1, abs=1e-4)


def test_ranks_of_many_voxels_are_those_of_a_sample():
    image, _ = make_phantom((64, 96, 96), np.random.default_rng(2))
    assert image.size > 2 * RANKED_VOXELS
    noise = np.random.default_rng(0).normal(size=image.shape)
    uncertainty, error = image[None], np.abs(image + image.std() * noise)
    exact = spearmanr(uncertainty.ravel(), error.ravel()).statistic
    found = rank_correlation(uncertainty, error)
    assert 0.1 < exact < 0.95
    assert found == pytest.approx(exact, abs=0.01)
    assert found != exact
    assert rank_correlation(uncertainty, error) == found


def test_ranks_of_few_voxels_are_exact():
    u, error = np.random.default_rng(0).random((2, 1, RANKED_VOXELS // 100, 10, 10))
    error = u + 0.3 * error
    assert rank_correlation(u, error[0]) == spearmanr(u.ravel(), error.ravel()).statistic


@pytest.mark.parametrize("upper_ties", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_simulated_case_is_the_degraded_volume_with_its_slices_first(axis, upper_ties):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 9, 11)).astype(np.float32)
    labels = rng.integers(-1, 3, size=(1, 6, 9, 11)).astype(np.int8)
    before = image.copy()
    (lr, lr_labels), (truth, true_labels) = simulated_case(image, labels, 4, axis, upper_ties=upper_ties)
    expected = image[:, :, :8].transpose(0, 2, 1, 3) if axis == 1 else image[..., :8].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(truth, expected)
    assert lr.shape == (2, 2, 6, 11 if axis == 1 else 9)
    assert true_labels.shape == (1, *truth.shape[1:])
    np.testing.assert_allclose(lr, degrade(torch.from_numpy(truth), 4, 1).numpy())
    thick_labels = degrade_labels(torch.from_numpy(true_labels), 4, 1, upper_ties=upper_ties)
    np.testing.assert_array_equal(lr_labels, thick_labels.numpy())
    np.testing.assert_array_equal(image, before)


def memory_dataset(cases):
    return SimpleNamespace(identifiers=list(cases), load_case=lambda i: (*cases[i], None, {"spacing": [2, 1, 1]}))


@pytest.mark.parametrize("upper_ties", [False, True])
def test_both_axes_in_plane_play_the_slice_axis(phantom, upper_ties):
    image, labels = phantom
    cases = list(simulated_cases(phantom, FACTOR, (2.0, 0.5, 1.5), upper_ties=upper_ties))
    assert [case.name for case in cases] == ["simulated along y", "simulated along x"]
    assert [case.spacing_mm for case in cases] == [(1, 1, 1.5), (3, 1, 0.5)]
    for axis, case in zip((1, 2), cases, strict=True):
        expected = simulated_case(image, labels, FACTOR, axis, upper_ties=upper_ties)
        for found, volumes in zip((case.lr, case.truth), expected, strict=True):
            for ours, theirs in zip(found, volumes, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert list(simulated_cases(phantom, 17, (2.0, 0.5, 1.5), upper_ties=upper_ties)) == []  # too short


def report(phantom, folder, *, names=("b", "a"), config=NETWORK_ALONE, smore=None, figures=1):
    """Of cases with the same image, and the interpolated case."""
    lr = thick(*phantom)
    spacing = (2.0, 0.5, 1.5)
    fine = (phantom[0], interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=spacing)[None])
    found = report_self_sr(
        Interpolating(),
        memory_dataset(dict.fromkeys(names, lr)),
        memory_dataset(dict.fromkeys(names, fine)),
        plan(PLAIN, factor=FACTOR, spacing_mm=spacing, raw_folder=folder / "Dataset001_None"),
        figure_folder=folder,
        config=config,
        smore=smore,
        figures=figures,
    )
    return found, fine


def test_the_whole_report(phantom, tmp_path, capsys):
    found, fine = report(phantom, tmp_path)
    assert "report: 100%" in capsys.readouterr().err
    assert found.cases == {"simulated along y": 2, "simulated along x": 2}
    for axis, name, spacing in ((1, "simulated along y", (1, 1, 1.5)), (2, "simulated along x", (3, 1, 0.5))):
        expected = []
        for upper_ties in (False, True):  # ties take turns from case to case
            simulated, truth = simulated_case(*fine, FACTOR, axis, upper_ties=upper_ties)
            hr = super_resolve_case(Interpolating(), *simulated, PLAIN, config=NETWORK_ALONE)
            comparison = Comparison(name, simulated, truth, spacing)
            expected.append(restoration_scores(comparison, hr, PLAIN, method=SELF_SR))
        means = mean_scores(expected)
        for method in (NEAREST, SIGNED_DISTANCE):
            assert found.comparisons[name][method] == pytest.approx(means[method])
        for key in ("psnr", "ssim", "dice"):
            assert found.comparisons[name][SELF_SR][key] == pytest.approx(means[SELF_SR][key])
    assert [file.name for file in tmp_path.iterdir()] == ["pseudo_hr_a.png"]
    assert "simulated along x (n=2)" in found.as_table()


def test_the_truth_is_compared_where_it_is_known(phantom, tmp_path, monkeypatch):
    asked = []

    def known(planned, identifier, lr_image, properties):
        asked.append((planned.factor, identifier, lr_image.shape, properties))
        return phantom if identifier == "b" else None

    monkeypatch.setattr(module, "true_hr_case", known)
    found, _ = report(phantom, tmp_path)
    assert [identifier for _, identifier, _, _ in asked] == ["a", "b"]
    assert asked[0] == (FACTOR, "a", (1, 8, 16, 16), {"spacing": [2, 1, 1]})
    assert found.cases[TRUE_HR] == 1
    lr = thick(*phantom)
    hr = super_resolve_case(Interpolating(), *lr, PLAIN, config=NETWORK_ALONE)
    expected = restoration_scores(Comparison(TRUE_HR, lr, phantom, (2.0, 0.5, 1.5)), hr, PLAIN, method=SELF_SR)
    assert list(found.comparisons[TRUE_HR]) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
    assert found.comparisons[TRUE_HR][SELF_SR]["dice"] == pytest.approx(expected[SELF_SR]["dice"])
    assert found.comparisons[TRUE_HR][NEAREST] == pytest.approx(expected[NEAREST])


@pytest.mark.parametrize(("setting", "method"), [("smore", WITH_SMORE), ("self_sr", SELF_SR)])
def test_an_image_by_smore_is_told(phantom, tmp_path, monkeypatch, setting, method):
    monkeypatch.setattr(module, "true_hr_case", lambda *_: phantom)
    noise = np.random.default_rng(0).normal(scale=1e-4, size=phantom[0].shape)
    smore = memory_dataset(dict.fromkeys("ab", (phantom[0] + noise, phantom[1])))
    config = NETWORK_ALONE.model_copy(update={"image": setting})
    found, _ = report(phantom, tmp_path, config=config, smore=smore)
    assert list(found.comparisons[TRUE_HR]) == [NEAREST, SIGNED_DISTANCE, method]
    assert (found.comparisons[TRUE_HR][method]["psnr"] > 80) == (method == WITH_SMORE)
    for name in ("simulated along y", "simulated along x"):  # simulated cases have none
        assert list(found.comparisons[name]) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
        assert found.comparisons[name][SELF_SR]["psnr"] < 80


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
