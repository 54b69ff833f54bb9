"""Cases without U as pseudo-HR cases with U = 0, lazily."""

from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.segmentation.certain_cases import CertainCases, CertainImage
from rehrseg_nnunet.segmentation.loader import HRPatchLoader

LABELS = LabelManager({"background": 0, "a": 1}, None)


@pytest.mark.parametrize("store", [np.asarray, blosc2.asarray])
def test_u_is_appended_to_what_is_read(store):
    image = np.random.default_rng(0).random((2, 4, 5, 6), dtype=np.float32)
    certain = CertainImage(store(image))
    assert certain.shape == (3, 4, 5, 6)
    assert certain.dtype == np.float32
    crop = certain[:, 1:3, :, 2:5]
    np.testing.assert_array_equal(crop[:2], image[:, 1:3, :, 2:5])
    assert crop.shape == (3, 2, 5, 3)
    assert (crop[2] == 0).all()
    np.testing.assert_array_equal(certain[1:2, :, :, :], image[1:2])


def test_patches_are_those_of_the_same_cases_with_u_0():
    """Through the loader: U + 1 marks what is inside the volume, 0 the padding."""
    rng = np.random.default_rng(1)
    image = rng.random((1, 12, 6, 7), dtype=np.float32) + 1
    labels = rng.integers(0, 2, size=(1, 12, 6, 7)).astype(np.int8)
    unit = IntensityUnit(zero=(0.0,), length=(1.0,)).as_property()
    properties = {"class_locations": class_locations(labels, LABELS), **unit}
    with_u = np.concatenate([image, np.zeros_like(image)])
    batches = []
    for data, wrap in ((image, CertainCases), (with_u, lambda cases: cases)):
        np.random.seed(2)  # noqa: NPY002
        case = (data, labels, None, properties)
        cases = wrap(SimpleNamespace(identifiers=["case"], load_case=lambda _, case=case: case))
        batches.append(next(HRPatchLoader(cases, 4, (5, 6, 7), (5, 6, 7), LABELS, factor=4)))
    torch.testing.assert_close(batches[0]["data"], batches[1]["data"])
    marks = batches[0]["data"][:, 1]
    assert set(marks.unique().tolist()) == {0, 1}
    torch.testing.assert_close(marks == 0, batches[0]["data"][:, 0] == 0)
