"""How often pseudo labels are wrong, measured with a network."""

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
from rehrseg_nnunet.self_sr.calibrate import calibrate
from rehrseg_nnunet.self_sr.network import SelfSROutput, interpolate_middle

FACTOR = 2
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)


class Interpolating(nn.Module):
    """Interface of the self-SR network; interpolates linearly, and its U is noise."""

    def __init__(self):
        super().__init__()
        self.factor = FACTOR
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, window):
        maps = interpolate_middle(window, FACTOR)
        return SelfSROutput(maps[:, :1], 8 * maps[:, 1:], torch.rand_like(maps[:, :1]))


@pytest.fixture(scope="module")
def cases():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    image, labels = image[None].astype(np.float32), labels[None].astype(np.int16)
    properties = {"spacing": [1, 1, 1], **IntensityUnit.of_case(image).as_property()}
    return SimpleNamespace(identifiers=["a"], load_case=lambda _: (image, labels, None, properties))


def test_each_u_gets_its_own_map(cases):
    """Entropy tells wrong labels from right ones; of noise nothing remains but their share."""
    torch.manual_seed(0)
    planned = plan(PLAIN, factor=FACTOR, spacing_mm=(2.0, 1.0, 1.0))
    entropy, noise = (
        calibrate(Interpolating(), cases, planned, config=ExportConfig(uncertainty=kind))
        for kind in ("entropy", "calibrated")
    )
    assert entropy.wrong[0] < 0.01
    assert entropy.wrong[-1] > 0.2
    assert np.ptp(noise.wrong) < 0.1 * np.ptp(entropy.wrong)
