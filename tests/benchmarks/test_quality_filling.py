"""Fill between slices, where ITK's filter is installed."""

import sys

import numpy as np
import pytest

from benchmarks.quality import filling
from benchmarks.quality.filling import fill_cases, require_filter

try:
    require_filter()
    INSTALLED = True
except ModuleNotFoundError:
    INSTALLED = False


def test_a_missing_filter_is_one_line(monkeypatch):
    monkeypatch.setattr(filling, "PACKAGE", "itk-that-nobody-has")
    message = (
        r'^itk-that-nobody-has must be installed for \*Fill between slices\*; run pip install -e "\.\[benchmark\]"$'
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        fill_cases({"a": np.zeros((2, 4, 4), np.uint8)}, 4, 0)


def cone(axis):
    """A square that grows from slice to slice, two labels side by side."""
    labels = np.zeros((5, 16, 24), dtype=np.uint8)
    for slice_ in range(1, 4):
        labels[slice_, 8 - 2 * slice_ : 8 + 2 * slice_, 4:12] = 1
        labels[slice_, 8 - 2 * slice_ : 8 + 2 * slice_, 12:20] = 2
    return np.moveaxis(labels, 0, axis)


@pytest.mark.skipif(not INSTALLED, reason="the extra `benchmark` is not installed")
@pytest.mark.parametrize(("factor", "axis"), [(3, 0), (4, 0), (4, 2)])
def test_slices_keep_their_labels_and_sizes_lie_between(factor, axis):
    assert "itk" not in sys.modules
    thick = cone(axis)
    filled = np.moveaxis(fill_cases({"a": thick}, factor, axis)["a"], axis, 0)
    assert filled.shape == (5 * factor, 16, 24)
    for centre in {(factor - 1) // 2, factor // 2}:
        np.testing.assert_array_equal(filled[centre::factor], np.moveaxis(thick, axis, 0))
    sizes = [int((slice_ == 1).sum()) for slice_ in filled]
    inside = sizes[factor : 4 * factor]
    assert sizes[: factor - factor // 2] == [0] * (factor - factor // 2)
    assert inside[factor // 2 : -factor // 2 or None] == sorted(inside[factor // 2 : -factor // 2 or None])
    assert len(set(inside)) > 3  # not the repeated slices
    assert "itk" not in sys.modules
