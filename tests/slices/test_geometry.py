import copy

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from rehrseg_nnunet.slices.geometry import (
    check_thick_slices,
    hr_slice_positions,
    scale_affine,
    scale_slice_geometry,
    sr_factor,
)

READERS = {"sitk": SimpleITKIO, "sitk_ras": SimpleITKIOWithReorient, "nib": NibabelIO, "nib_ras": NibabelIOWithReorient}
SLICES, IN_PLANE = 5, (3, 4)


def rotation(angles):
    """Direction cosines from three Euler angles."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[[i, j], [i, j]] = c
        turn[i, j], turn[j, i] = -s, s
        matrix = turn @ matrix
    return matrix


@st.composite
def geometries(draw):
    angle = st.floats(-np.pi, np.pi)
    directions = rotation([draw(angle) for _ in range(3)]) @ np.diag([draw(st.sampled_from([1, -1])) for _ in range(3)])
    spacing = [draw(st.floats(0.3, 7)) for _ in range(3)]
    origin = [draw(st.floats(-300, 300)) for _ in range(3)]
    return directions, spacing, origin


def write_image(path, shape, geometry):
    """NIfTI file with numbered voxels; `shape` in array order (z, y, x)."""
    directions, spacing, origin = geometry
    image = sitk.GetImageFromArray(np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape))
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def affine_of(path):
    """RAS affine that nibabel, independently of the writer, finds in the file."""
    return nibabel.load(path).affine


def files_after(folder, geometry, reader, axis, factor):
    """Write an LR file, read it with a reader, write HR voxel numbers with the scaled geometry."""
    lr_path, hr_path = str(folder / "lr.nii.gz"), str(folder / "hr.nii.gz")
    shape = list(IN_PLANE)
    shape.insert(axis, SLICES)
    write_image(lr_path, shape, geometry)
    array, properties = READERS[reader]().read_images([lr_path])
    hr = np.repeat(array[0], factor, axis=axis)
    READERS[reader]().write_seg(hr, hr_path, scale_slice_geometry(properties, axis, 1 / factor))
    return nibabel.load(lr_path), nibabel.load(hr_path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@settings(max_examples=8, deadline=None)
@given(geometry=geometries(), factor=st.integers(2, 6))
def test_files_cover_the_same_field_of_view(tmp_path_factory, reader, axis, geometry, factor):
    lr, hr = files_after(tmp_path_factory.mktemp("files"), geometry, reader, axis, factor)
    # the array axis that was split is a file axis that depends on the reader: find it by its size
    file_axis = next(a for a in range(3) if hr.shape[a] != lr.shape[a])
    values = lr.get_fdata()
    assert hr.shape[file_axis] == factor * lr.shape[file_axis]
    np.testing.assert_array_equal(hr.get_fdata(), np.repeat(values, factor, axis=file_axis))
    # HR voxel j lies at LR coordinate (j + 1/2)/r - 1/2 in mm
    index = np.stack(np.meshgrid(*(np.arange(n) for n in hr.shape), indexing="ij"), -1).reshape(-1, 3).astype(float)
    lr_index = index.copy()
    lr_index[:, file_axis] = (index[:, file_axis] + 0.5) / factor - 0.5
    np.testing.assert_allclose(
        nibabel.affines.apply_affine(hr.affine, index), nibabel.affines.apply_affine(lr.affine, lr_index), atol=1e-3
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@settings(max_examples=5, deadline=None)
@given(geometry=geometries(), factor=st.integers(2, 6))
def test_there_and_back_is_the_identity(tmp_path_factory, reader, axis, geometry, factor):
    path = str(tmp_path_factory.mktemp("files") / "lr.nii.gz")
    write_image(path, (3, 4, 5), geometry)
    _, properties = READERS[reader]().read_images([path])
    before = copy.deepcopy(properties)
    back = scale_slice_geometry(scale_slice_geometry(properties, axis, 1 / factor), axis, factor)
    np.testing.assert_allclose(back["spacing"], before["spacing"], rtol=1e-12)
    kind = "sitk_stuff" if "sitk_stuff" in before else "nibabel_stuff"
    assert back[kind].keys() == before[kind].keys() == properties[kind].keys()
    for key, value in before[kind].items():
        if isinstance(value, str):
            assert back[kind][key] == value
        else:
            np.testing.assert_allclose(back[kind][key], value, atol=1e-9)
            np.testing.assert_array_equal(properties[kind][key], value)


@settings(deadline=None)
@given(
    axis=st.integers(0, 2),
    scale=st.floats(0.1, 10),
    index=st.floats(-5, 5),
    entries=st.lists(st.floats(-5, 5), min_size=12, max_size=12),
)
def test_scale_affine_keeps_faces(axis, scale, index, entries):
    affine = np.vstack([np.reshape(entries, (3, 4)), [0, 0, 0, 1]])
    point = np.array([1.0, -2.0, 0.5])
    point[axis] = index
    scaled_point = point.copy()
    scaled_point[axis] = (index + 0.5) / scale - 0.5
    np.testing.assert_allclose(
        nibabel.affines.apply_affine(scale_affine(affine, axis, scale), scaled_point),
        nibabel.affines.apply_affine(affine, point),
        atol=1e-9,
    )


@settings(deadline=None)
@given(slices=st.integers(1, 9), factor=st.integers(2, 7))
def test_hr_slices_lie_evenly_in_their_lr_slice(slices, factor):
    hr = hr_slice_positions(slices, factor)
    assert hr.shape == (slices * factor,)
    np.testing.assert_allclose(np.diff(hr), 1 / factor, atol=1e-12)
    np.testing.assert_allclose(hr.reshape(slices, factor).mean(1), np.arange(slices), atol=1e-12)
    np.testing.assert_allclose(hr + hr[::-1], slices - 1, atol=1e-12)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((4, 1, 1), 4),
        ((5, 1, 0.8), 6),
        ((2.4, 1, 1), 2),
        ((2.5, 1, 1), 3),
        ((1.6, 1, 1), 2),
        ((3, 0.5, 0.5), 6),
        ((3.5, 1, 1), 4),
    ],
)
def test_factor(spacing, expected):
    assert sr_factor(spacing) == expected


def test_thick_slices_pass():
    check_thick_slices((4.0, 0.8, 1.0))
    check_thick_slices([1.5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("spacing", "error", "message"),
    [
        ((1.0, 1.0), NotImplementedError, "3d configuration"),
        ((1.4, 1.0, 1.0), ValueError, "1.5 times as thick .*1.4 x 1 x 1 mm.*-overwrite_target_spacing"),
        ((1.0, 1.0, 4.0), ValueError, "-overwrite_target_spacing"),
        ((6.0, 1.0, 3.0), ValueError, "two thick axes.*-overwrite_target_spacing"),
    ],
)
def test_refuses_spacings(spacing, error, message):
    with pytest.raises(error, match=message):
        check_thick_slices(spacing)


def test_refuses_files_without_3d_geometry():
    with pytest.raises(NotImplementedError, match=r"got keys \['spacing'\]"):
        scale_slice_geometry({"spacing": [3, 1, 1]}, 0, 0.5)
    flat = {"spacing": [999, 1, 1], "sitk_stuff": {"spacing": (1, 1), "origin": (0, 0), "direction": (1, 0, 0, 1)}}
    with pytest.raises(NotImplementedError, match="3D files"):
        scale_slice_geometry(flat, 0, 0.5)
