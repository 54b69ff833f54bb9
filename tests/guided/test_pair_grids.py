"""Channels of a raw dataset that do not lie on one grid are named, by their headers alone."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.guided.pair_grids import check_grids, header_grid
from rehrseg_nnunet.nnunet.whole_files import whole_files
from rehrseg_nnunet.slices.grids import LPS_RAS, corner_distance_mm, grid_from_properties

SIZE, SPACING = (5, 6, 7), (1.0, 2.0, 3.0)  # x, y, z
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
ENDINGS = (".nii.gz", ".nrrd", ".mha")
TURNING = (NibabelIOWithReorient, SimpleITKIOWithReorient)
READERS = (NibabelIO, SimpleITKIO, *TURNING)


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
        check_grids(pairs(tmp_path, ending, **changes), reader=SimpleITKIO)


@pytest.mark.parametrize("reader", READERS)
def test_rounded_headers_are_no_difference(tmp_path, reader):
    images = pairs(tmp_path, origin=(10.0, -20.05, 30.0))
    assert check_grids(images, reader=reader) == []


def test_other_cases_are_named_too(tmp_path):
    images = pairs(tmp_path, origin=(0.0, 0.0, 0.0))
    images["c"] = [images["c"][0], images["b"][1]]
    with pytest.raises(ValueError, match=r"b_0001.* \(and of case c\)$"):
        check_grids(images, reader=NibabelIO)


def test_no_voxel_is_read(tmp_path):
    """What follows a header may be missing."""
    images = pairs(tmp_path, ".mha")
    for files in images.values():
        for file in files:
            with open(file, "rb+") as stream:
                stream.truncate(stream.read().index(b"LOCAL") + 6)
    assert check_grids(images, reader=SimpleITKIO) == []


def test_headers_that_cannot_be_read_are_no_reason_to_refuse(tmp_path):
    images = pairs(tmp_path)
    with open(images["b"][0], "wb") as stream:
        stream.write(b"no image")
    for reader in READERS:
        assert "b" in check_grids(images, reader=reader)


def rotation(seed):
    """Axes in any directions, with any handedness."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def save(file, affine, values):
    nibabel.save(nibabel.Nifti1Image(values, affine), file)
    return str(file)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("seed", range(12))
def test_a_headers_grid_is_that_of_the_array(tmp_path, reader, seed):
    affine = np.eye(4)
    affine[:3] = np.column_stack([rotation(seed) * SPACING, (10, -20, 30)])
    file = save(tmp_path / "a.nii.gz", affine, np.zeros(SIZE, np.float32))
    values, properties = reader().read_images([file])
    expected, grid = grid_from_properties(properties, values.shape[1:]), header_grid(file, reader=whole_files(reader))
    assert grid.shape == expected.shape
    assert corner_distance_mm(grid, expected) < 1e-4


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("moved_mm", [0, 5])
def test_one_head_in_two_orders_is_what_the_reader_makes_of_it(tmp_path, reader, moved_mm):
    """RAS and LAS: equal arrays for readers that turn axes, mirrored ones for others."""
    values = np.random.default_rng(0).random(SIZE).astype(np.float32)
    affine = np.diag([*SPACING, 1.0])
    mirrored = affine @ np.array([[-1, 0, 0, SIZE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    mirrored[1, 3] += moved_mm
    files = [save(tmp_path / "a.nii.gz", affine, values), save(tmp_path / "b.nii.gz", mirrored, values[::-1])]
    arrays = [reader().read_images([file])[0] for file in files]
    assert np.array_equal(*arrays) == (reader in TURNING)
    if reader in TURNING and not moved_mm:
        assert check_grids({"a": files}, reader=reader) == []
    else:
        with pytest.raises(ValueError, match=r"b.nii.gz must have the voxels of .*a.nii.gz"):
            check_grids({"a": files}, reader=reader)


def test_turned_axes_are_told_without_voxels(tmp_path):
    """What follows a header is missing."""
    affine = LPS_RAS @ np.diag([*SPACING, 1.0])
    for name in ("a.nii", "b.nii"):
        whole = nibabel.Nifti1Image(np.zeros(SIZE, np.float32), affine).to_bytes()
        (tmp_path / name).write_bytes(whole[:352])
    assert header_grid(str(tmp_path / "a.nii"), reader=NibabelIOWithReorient).shape == SIZE[::-1]
    assert check_grids({"a": [str(tmp_path / name) for name in ("a.nii", "b.nii")]}, reader=TURNING[0]) == []


def dpi_pair(folder, ending, reader, *, depth=4):
    """A case of two channels with other resolutions, of which the second may have another depth."""
    files = [str(folder / f"a_{channel:04d}{ending}") for channel in range(2)]
    if reader is NaturalImage2DIO:
        for file, spacing in zip(files, (0.1, 0.35), strict=True):
            image = sitk.Image((5, 6), sitk.sitkUInt8)
            image.SetSpacing((spacing, spacing))
            sitk.WriteImage(image, file)
        return files
    for file, layers, dpi, imagej in zip(files, (4, depth), (300, 72), (False, True), strict=True):
        values = np.zeros((layers, 6, 5), np.uint8)
        tifffile.imwrite(file, values, resolution=(dpi, dpi), imagej=imagej, photometric="minisblack")
    return files


@pytest.mark.parametrize(
    ("reader", "ending"),
    [(Tiff3DIO, ".tif"), (Tiff3DIO, ".tiff"), (NaturalImage2DIO, ".tif"), (NaturalImage2DIO, ".png")],
)
def test_dots_per_inch_are_no_place(tmp_path, reader, ending):
    files = dpi_pair(tmp_path, ending, reader)
    reader().read_images(files)
    assert check_grids({"a": files}, reader=reader) == []


def test_other_shapes_are_nnunets_to_refuse(tmp_path, capsys):
    """Which is why formats without positions need no comparison."""
    with pytest.raises(RuntimeError):
        Tiff3DIO().read_images(dpi_pair(tmp_path, ".tif", Tiff3DIO, depth=3))


def test_an_unknown_readers_grids_are_not_compared(tmp_path):
    assert check_grids(pairs(tmp_path, origin=(0.0, 0.0, 0.0)), reader=BaseReaderWriter) == ["a", "b", "c"]


def test_nibabel_reads_what_simpleitk_refuses(tmp_path):
    """A sheared affine."""
    affine = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, np.float32), affine), tmp_path / "a.nii.gz")
    assert header_grid(str(tmp_path / "a.nii.gz"), reader=NibabelIO).shape == SIZE[::-1]
