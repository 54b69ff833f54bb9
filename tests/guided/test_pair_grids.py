"""Channels of a raw dataset that do not lie on one grid are named, by their headers alone."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.guided.pair_grids import check_grids, header_grid
from rehrseg_nnunet.slices.grids import corner_distance_mm, grid_from_properties

SIZE, SPACING = (5, 6, 7), (1.0, 2.0, 3.0)  # x, y, z
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
ENDINGS = (".nii.gz", ".nrrd", ".mha")


def write(file, *, origin=(10.0, -20.0, 30.0), spacing=SPACING, size=SIZE, direction=OBLIQUE):
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(file))
    return str(file)


def pairs(folder, ending=".nii.gz", **changes):
    """Three cases; the second one's better scan lies otherwise."""
    return {
        case: [
            write(folder / f"{case}_0000{ending}"),
            write(folder / f"{case}_0001{ending}", **(changes if case == "b" else {})),
        ]
        for case in "abc"
    }


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origin": (10.0, -11.0, 30.0)}, r"corner voxels are up to 9 mm apart \(0\.1 mm is allowed\)"),
        ({"spacing": (1.0, 2.0, 3.1)}, "0.6 mm apart"),
        ({"size": (5, 6, 8)}, r"got shape \(8, 6, 5\), .* instead of shape \(7, 6, 5\)"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, "axes along"),
    ],
)
def test_another_grid_is_refused_with_case_and_difference(tmp_path, ending, changes, message):
    with pytest.raises(ValueError, match=rf"b_0001.* must have the voxels of .*b_0000.*{message}.*resample it onto"):
        check_grids(pairs(tmp_path, ending, **changes), by_nibabel=False)


@pytest.mark.parametrize("by_nibabel", [False, True])
def test_rounded_headers_are_no_difference(tmp_path, by_nibabel):
    images = pairs(tmp_path, origin=(10.0, -20.05, 30.0))
    assert check_grids(images, by_nibabel=by_nibabel) == []


def test_other_cases_are_named_too(tmp_path):
    images = pairs(tmp_path, origin=(0.0, 0.0, 0.0))
    images["c"] = [images["c"][0], images["b"][1]]
    with pytest.raises(ValueError, match=r"b_0001.* \(and of case c\)$"):
        check_grids(images, by_nibabel=True)


def test_no_voxel_is_read(tmp_path):
    """What follows a header may be missing."""
    images = pairs(tmp_path, ".mha")
    for files in images.values():
        for file in files:
            with open(file, "rb+") as stream:
                stream.truncate(stream.read().index(b"LOCAL") + 6)
    assert check_grids(images, by_nibabel=False) == []


def test_headers_that_cannot_be_read_are_no_reason_to_refuse(tmp_path):
    images = pairs(tmp_path)
    with open(images["b"][0], "wb") as stream:
        stream.write(b"no image")
    assert check_grids(images, by_nibabel=False) == check_grids(images, by_nibabel=True) == ["b"]


@pytest.mark.parametrize("by_nibabel", [False, True])
def test_a_headers_grid_is_that_of_the_whole_file(tmp_path, by_nibabel):
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    file = write(tmp_path / "a.nii.gz")
    values, properties = (NibabelIO if by_nibabel else SimpleITKIO)().read_images([file])
    expected, grid = grid_from_properties(properties, values.shape[1:]), header_grid(file, by_nibabel=by_nibabel)
    assert grid.shape == expected.shape
    assert corner_distance_mm(grid, expected) < 1e-4


def test_nibabel_reads_what_simpleitk_refuses(tmp_path):
    """A sheared affine."""
    affine = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, np.float32), affine), tmp_path / "a.nii.gz")
    assert header_grid(str(tmp_path / "a.nii.gz"), by_nibabel=True).shape == SIZE[::-1]


def test_a_flat_image_is_a_slice(tmp_path):
    sitk.WriteImage(sitk.Image((5, 6), sitk.sitkUInt8), str(tmp_path / "a.png"))
    assert header_grid(str(tmp_path / "a.png"), by_nibabel=False).shape == (1, 6, 5)
