"""*Fill between slices* of 3D Slicer and ITK-SNAP: labels between labelled slices by morphological interpolation.

ITK runs in a process of its own, `python -m benchmarks.quality.filling CASES.npz FILLED.npz FACTOR AXIS`, and in one
thread: with two, the filter's version 2.1.2 sometimes damaged the memory and ended in an abort.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

PACKAGE = "itk-morphologicalcontourinterpolation"
ONE_THREAD = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


def require_filter() -> None:
    """Check that ITK's filter is installed, without loading it.

    Raises:
        ModuleNotFoundError: it is not; the message says what to run.
    """
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        remedy = 'run pip install -e ".[benchmark]"'
        raise ModuleNotFoundError(f"{PACKAGE} must be installed for *Fill between slices*; {remedy}") from None


def fill_cases(cases: Mapping[str, np.ndarray], factor: int, axis: int) -> dict[str, np.ndarray]:
    """`fill_between_slices` of several label maps, in another process.

    Raises:
        ModuleNotFoundError: ITK's filter is not installed.
        subprocess.CalledProcessError: it failed.
    """
    require_filter()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "filled.npz"
        np.savez(source, **cases)
        command = [sys.executable, "-m", "benchmarks.quality.filling", str(source), str(target), str(factor), str(axis)]
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2], env={**os.environ, **ONE_THREAD})
        with np.load(target) as filled:
            return dict(filled)


def fill_between_slices(labels: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Thin-slice labels that the filter makes of thick-slice ones.

    The filter fills between slices of one grid, so it works on one in steps of 1 / 2r, on which the centres of thick
    and of thin slices lie. The thin slices at a thick slice's centre (two for even r) keep its labels; beyond the
    outermost centres there is nothing to fill, and the nearest slice's labels count.

    Args:
        labels: (D, H, W), thick along `axis`, values from 0 to 255.
        factor: r.
        axis: array axis of the slices.

    Returns:
        int16 labels with r times as many slices, over the same field of view.
    """
    import itk  # takes seconds, and is an extra

    thick = np.moveaxis(labels, axis, 0)
    fine = np.zeros((2 * factor * (len(thick) - 1) + 1, *thick.shape[1:]), dtype=np.uint8)
    fine[:: 2 * factor] = thick
    interpolator = itk.MorphologicalContourInterpolator.New(itk.image_from_array(fine))
    interpolator.SetAxis(2)  # ITK counts axes from the last of the array
    interpolator.Update()
    filled = itk.array_from_image(interpolator.GetOutput())
    positions = np.clip(2 * np.arange(len(thick) * factor) + 1 - factor, 0, len(fine) - 1)
    result = filled[positions].astype(np.int16)
    for central in {(factor - 1) // 2, factor // 2}:
        result[central::factor] = thick
    return np.moveaxis(result, 0, axis)


def main(source: str, target: str, factor: str, axis: str) -> None:
    """Fill every array of an npz file, and save them under the same names."""
    with np.load(source) as cases:
        np.savez(target, **{name: fill_between_slices(cases[name], int(factor), int(axis)) for name in cases})


if __name__ == "__main__":
    main(*sys.argv[1:])
