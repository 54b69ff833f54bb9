"""The self-SR's report: comparisons with known truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.config.rehrseg import ExportConfig, SelfSRConfig
from rehrseg_nnunet.evaluation.metrics import psnr, ssim
from rehrseg_nnunet.restoration.report import NEAREST, SIGNED_DISTANCE, mean_scores
from rehrseg_nnunet.self_sr.network import SelfSROutput, interpolate_middle
from rehrseg_nnunet.self_sr.report import (
    SELF_SR,
    WITH_SMORE,
    report_self_sr,
    restoration_scores,
    simulated_case,
)
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, interpolate

FACTOR = 2
NETWORK_ALONE = ExportConfig(back_projection_steps=0)
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)
IGNORE = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2, "ignore": 3}, None)


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


def test_scores_of_three_ways(phantom):
    image, labels = phantom
    lr = thick(image, labels)
    scores = restoration_scores(Oracle(image, labels), lr, phantom, PLAIN, spacing_mm=(2, 1, 1), config=NETWORK_ALONE)
    assert list(scores) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
    span = float(np.ptp(image))
    spline = interpolate(torch.from_numpy(lr[0]), FACTOR, 1).numpy()
    for method in (NEAREST, SIGNED_DISTANCE):
        assert scores[method]["psnr"] == pytest.approx(psnr(image[0], spline[0], data_range=span))
        assert scores[method]["ssim"] == pytest.approx(ssim(image[0], spline[0], data_range=span))
    upsampled = {
        NEAREST: lr[1].repeat(FACTOR, axis=1)[0],
        SIGNED_DISTANCE: interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=(2, 1, 1)),
        SELF_SR: labels[0],
    }
    for method, result in upsampled.items():
        overlaps = [
            2 * ((result == c) & (labels[0] == c)).sum() / ((result == c).sum() + (labels[0] == c).sum())
            for c in (1, 2)
        ]
        assert scores[method]["dice"] == pytest.approx(np.mean(overlaps))
    assert scores[SELF_SR]["dice"] == 1
    assert scores[SELF_SR]["spearman"] == pytest.approx(1, abs=1e-3)
    assert scores[SELF_SR]["psnr"] > scores[NEAREST]["psnr"] + 10


def test_an_image_by_smore_is_told(phantom):
    image, labels = phantom
    lr = thick(image, labels)
    for setting, method in (("smore", WITH_SMORE), ("self_sr", SELF_SR)):
        config = NETWORK_ALONE.model_copy(update={"image": setting})
        scores = restoration_scores(
            Oracle(image, labels), lr, phantom, PLAIN, spacing_mm=(2, 1, 1), config=config, smore_image=image
        )
        assert list(scores) == [NEAREST, SIGNED_DISTANCE, method]
        assert np.isinf(scores[method]["psnr"]) == (method == WITH_SMORE)
        assert scores[method]["dice"] == 1


def test_ignored_voxels_do_not_count(phantom):
    image, labels = phantom
    ignored = labels.copy()
    ignored[..., :8] = 3
    lr = thick(image, labels)
    expected = restoration_scores(
        Interpolating(),
        (lr[0][..., 8:], lr[1][..., 8:]),
        (image[..., 8:], labels[..., 8:]),
        PLAIN,
        spacing_mm=(2, 1, 1),
        config=NETWORK_ALONE,
    )[NEAREST]["dice"]
    lr[1][..., :8] = 3
    for truth in (ignored, labels):  # the true HR labels of `rehrseg simulate` know more than a sparse annotation
        found = restoration_scores(
            Interpolating(), lr, (image, truth), IGNORE, spacing_mm=(2, 1, 1), config=NETWORK_ALONE
        )
        assert found[NEAREST]["dice"] == pytest.approx(expected)


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


def test_the_whole_report(phantom, tmp_path):
    image, labels = phantom
    lr = thick(image, labels)
    cases = dict.fromkeys(("b", "a"), lr)
    fine = {name: (image, interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=(2, 1, 1))[None]) for name in cases}
    manager = SimpleNamespace(get_label_manager=lambda _: PLAIN)
    report = report_self_sr(
        Interpolating(),
        memory_dataset(cases),
        memory_dataset(fine),
        plans_manager=manager,
        configuration_manager=SimpleNamespace(spacing=[2.0, 0.5, 1.5]),
        dataset_json={"file_ending": ".nrrd"},
        raw_folder=tmp_path / "Dataset001_None",
        figure_folder=tmp_path,
        config=SelfSRConfig(),
        figures=1,
    )
    assert report.cases == {"simulated along y": 2, "simulated along x": 2}
    for axis, name, spacing in ((1, "simulated along y", (1, 1, 1.5)), (2, "simulated along x", (3, 1, 0.5))):
        expected = []
        for upper_ties in (False, True):  # ties take turns from case to case
            simulated, truth = simulated_case(*fine["a"], FACTOR, axis, upper_ties=upper_ties)
            expected.append(
                restoration_scores(Interpolating(), simulated, truth, PLAIN, spacing_mm=spacing, config=ExportConfig())
            )
        means = mean_scores(expected)
        for method in (NEAREST, SIGNED_DISTANCE):
            assert report.comparisons[name][method] == pytest.approx(means[method])
        assert report.comparisons[name][SELF_SR]["psnr"] == pytest.approx(means[SELF_SR]["psnr"])
    assert [file.name for file in tmp_path.iterdir()] == ["pseudo_hr_a.png"]
    assert "simulated along x (n=2)" in report.as_table()
