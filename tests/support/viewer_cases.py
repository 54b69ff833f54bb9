"""Cases for the viewer, drawn by formula: two balls in a scan with thick slices."""

import nibabel
import numpy as np

from rehrseg_nnunet.report.viewer import Viewer, ViewerCase, ViewerLayer
from rehrseg_nnunet.slices.grids import LPS_RAS, Grid
from rehrseg_nnunet.surfaces.structures import structures_of
from rehrseg_nnunet.surfaces.write import SurfaceOptions, write_label_surfaces

STRUCTURES = {"background": 0, "anterior": 1, "posterior": 2}
COLOURS = {1: (255, 0, 0), 2: (0, 0, 255)}
SHAPE = (40, 48, 32)
CENTRES = ((24, 32, 15), (14, 14, 18))  # voxels; anterior on the left side, posterior on the right
THICK = 4  # thin slices in a thick one
THIN_AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])  # the first axis runs to the left
THIN_AFFINE[:3, 3] = 20, -30, 5
THICK_AFFINE = THIN_AFFINE @ np.diag([1, 1, THICK, 1])
THICK_AFFINE[2, 3] += (THICK - 1) / 2


def thin_labels():
    labels = np.zeros(SHAPE, np.uint8)
    indices = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    for value, centre in enumerate(CENTRES, start=1):
        labels[np.linalg.norm(indices - centre, axis=-1) < 7] = value
    return labels


def viewer_case(name, folder=None, *, seed=0):
    """A case with three layers, and with surfaces if a folder for them is named."""
    labels = thin_labels()
    scan = 200 + 100 * labels + np.random.default_rng(seed).normal(0, 20, SHAPE)
    thick_scan = scan.reshape(*SHAPE[:2], -1, THICK).mean(axis=-1)
    uncertainty = np.abs(np.gradient(labels.astype(np.float32), axis=2)).astype(np.float32)
    layers = [
        ViewerLayer("Thin labels", nibabel.Nifti1Image(labels, THIN_AFFINE), "labels", COLOURS, {1: "anterior"}),
        ViewerLayer("Acquired labels", nibabel.Nifti1Image(labels[..., ::THICK], THICK_AFFINE), "labels", COLOURS),
        ViewerLayer("Uncertainty", nibabel.Nifti1Image(uncertainty, THIN_AFFINE), "uncertainty"),
    ]
    surfaces = [] if folder is None else ply_files(labels, folder / name)
    return ViewerCase(name, nibabel.Nifti1Image(thick_scan.astype(np.float32), THICK_AFFINE), layers, surfaces)


def ply_files(labels, stem):
    grid = Grid(labels.shape[::-1], (LPS_RAS @ THIN_AFFINE)[:, [2, 1, 0, 3]])
    written = write_label_surfaces(
        labels.T, grid, structures_of({"labels": STRUCTURES}), stem, SurfaceOptions(("ply",))
    )
    return [file for surface in written for file in surface.files]


def viewer_html(cases):
    viewer = Viewer()
    for case in cases:
        viewer.add(case)
    return viewer.html()
