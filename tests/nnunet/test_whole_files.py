import errno
import os
import pickle
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from rehrseg_nnunet.nnunet.whole_files import (
    STAGING_PREFIX,
    UnusableImageError,
    UnwrittenFileError,
    WholeFilesPlansManager,
    check_whole,
    staging,
)

READERS = {"SimpleITKIO": SimpleITKIO, "NibabelIO": NibabelIO}
SEGMENTATION = np.random.default_rng(0).integers(0, 3, (6, 20, 20)).astype(np.uint8)
PROPERTIES = {
    "SimpleITKIO": {"sitk_stuff": {"spacing": (1, 1, 4), "origin": (0, 0, 0), "direction": tuple(np.eye(3).ravel())}},
    "NibabelIO": {"nibabel_stuff": {"original_affine": np.eye(4)}},
}


def manager(reader="SimpleITKIO"):
    return WholeFilesPlansManager({"image_reader_writer": reader})


def files(reader="SimpleITKIO"):
    return manager(reader).image_reader_writer_class()


@pytest.fixture
def image(tmp_path):
    def write(ending):
        file = tmp_path / f"image{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(SEGMENTATION), str(file), True)
        return file

    return write


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_the_reader_is_the_plans_and_travels_to_workers():
    copied = pickle.loads(pickle.dumps(manager("NibabelIO")))
    assert issubclass(copied.image_reader_writer_class, NibabelIO)
    assert copied.image_reader_writer_class.supported_file_endings == NibabelIO.supported_file_endings


@pytest.mark.parametrize(
    ("reader", "ending"),
    [(r, e) for r in READERS for e in (".nii.gz", ".nii")] + [("SimpleITKIO", ".mha"), ("SimpleITKIO", ".nrrd")],
)
def test_files_that_end_early_are_named(image, reader, ending):
    file = image(ending)
    read = manager(reader).image_reader_writer_class().read_images
    np.testing.assert_array_equal(read([str(file)])[0], READERS[reader]().read_images([str(file)])[0])
    cut(file)
    with pytest.raises(
        UnusableImageError, match=rf"image{ending} must be a whole file that nnU-Net's {reader} can read"
    ):
        read([str(file)])


def test_simpleitk_alone_does_not_notice(image):
    """If it does one day, `check_whole` is no longer needed."""
    file = image(".nii.gz")
    cut(file)
    assert SimpleITKIO().read_images([str(file)])[0].shape == (1, *SEGMENTATION.shape)
    with pytest.raises(EOFError):
        check_whole(file)


@pytest.mark.parametrize("reader", READERS)
def test_a_case_appears_at_once(tmp_path, reader):
    writer = manager(reader).image_reader_writer_class()
    with staging(remedy="none") as stage:
        for name in ("a", "a.b_c"):
            output = stage(str(tmp_path / name))
            for ending in (".npz", ".pkl"):
                (tmp_path / f"{output}{ending}").touch()
            assert not list(tmp_path.glob(f"{name}.*"))
            writer.write_seg(SEGMENTATION, f"{output}.nii.gz", PROPERTIES[reader])
            assert {file.name for file in tmp_path.glob(f"{name}.*")} >= {
                f"{name}.{e}" for e in ("npz", "pkl", "nii.gz")
            }
        stage(str(tmp_path / "never"))
    written = SimpleITKIO().read_images([str(tmp_path / "a.b_c.nii.gz")])[0][0]
    np.testing.assert_array_equal(written, SEGMENTATION)
    endings = ("nii.gz", "npz", "pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{n}.{e}" for n in ("a", "a.b_c") for e in endings)


def test_the_segmentation_comes_last(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("rehrseg_nnunet.nnunet.whole_files.move_into_place", lambda _, file: order.append(file.name))
    with staging(remedy="none") as stage:
        output = stage(str(tmp_path / "a"))
        for ending in (".npz", ".pkl", ".aaa", ".zzz"):
            (tmp_path / f"{output}{ending}").touch()
        with pytest.raises(OSError, match="not empty"):  # nothing was moved
            manager().image_reader_writer_class().write_seg(SEGMENTATION, f"{output}.nii.gz", PROPERTIES["SimpleITKIO"])
    assert order[-1] == "a.nii.gz"
    assert len(order) == 5


def test_files_written_directly_are_checked_too(tmp_path, monkeypatch):
    writer = manager().image_reader_writer_class()
    writer.write_seg(SEGMENTATION, str(tmp_path / "a.nii.gz"), PROPERTIES["SimpleITKIO"])
    check_whole(tmp_path / "a.nii.gz")
    write = sitk.WriteImage

    def write_half(image, file, *options):
        write(image, file, *options)
        os.truncate(file, os.path.getsize(file) // 2)

    monkeypatch.setattr(sitk, "WriteImage", write_half)
    with pytest.raises(UnwrittenFileError, match=r"b\.nii\.gz could not be written: Compressed file ended"):
        writer.write_seg(SEGMENTATION, str(tmp_path / "b.nii.gz"), PROPERTIES["SimpleITKIO"])


def fail_with(error):
    def write_half(image, file):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise error

    return write_half


def write_staged(folder, reader):
    with staging(remedy="free space") as stage:
        output = f"{stage(str(folder / 'a'))}.nii.gz"
        manager(reader).image_reader_writer_class().write_seg(SEGMENTATION, output, PROPERTIES[reader])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("sitk::ERROR")])
def test_what_cannot_be_written_is_named_and_removed(tmp_path, monkeypatch, error):
    monkeypatch.setattr(nibabel, "save", fail_with(error))
    (tmp_path / "a.nii.gz").write_text("of a former run")
    with pytest.raises(UnwrittenFileError, match=rf"^{tmp_path}/a\.nii\.gz could not be written: .*; free space$"):
        write_staged(tmp_path, "NibabelIO")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_text() == "of a former run"


def test_the_error_travels_from_workers():
    assert str(pickle.loads(pickle.dumps(UnwrittenFileError("a could not be written")))) == "a could not be written"


def fail_while_staged(folder, error, *, unfinished=()):
    with staging(remedy="free") as stage:
        stage(str(folder / "a"))
        for name in unfinished:
            Path(f"{stage(str(folder / 'b'))}{name}").touch()
        raise error


def test_errors_without_a_name_get_that_of_the_unfinished_file(tmp_path):
    with pytest.raises(UnwrittenFileError, match=rf"^{tmp_path}/b\.npz could not be written: \[Errno 28\] full; free$"):
        fail_while_staged(tmp_path, OSError(errno.ENOSPC, "full"), unfinished=[".npz"])


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "missing", "model.pth"), FileNotFoundError("no model"), ValueError("x"), KeyboardInterrupt()],
)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        fail_while_staged(tmp_path, error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_staged_files_are_no_results(tmp_path):
    """nnU-Net lists the files of a folder by their endings, hidden ones too."""
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    with staging(remedy="none") as stage:
        (tmp_path / f"{stage(str(tmp_path / 'a_0000'))}.nii.gz").touch()
        assert len(get_identifiers_from_splitted_dataset_folder(str(tmp_path), ".nii.gz")) == 0
        assert [file.name.startswith(STAGING_PREFIX) for file in tmp_path.iterdir()] == [True]


def test_a_gipl_file_that_ends_early_is_named(image):
    """SimpleITK fills the rest with what happens to be in memory."""
    file = image(".gipl")
    np.testing.assert_array_equal(files().read_seg(str(file))[0][0], SEGMENTATION)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UnusableImageError, match=r"image\.gipl must be a whole file .* 2655 of 2656 bytes"):
        files().read_seg(str(file))


@pytest.mark.parametrize("spacing", [0.0, np.nan])
def test_headers_without_geometry_are_named(tmp_path, spacing):
    scan = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    nibabel.save(scan, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = np.diag([spacing] * 3 + [1.0])[:3].astype("<f4").tobytes()  # the header's sform
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UnusableImageError, match=r"a\.nii must have a positive spacing .*; mend its header"):
        files("NibabelIO").read_images([str(tmp_path / "a.nii")])


@pytest.mark.parametrize("reader", READERS)
def test_complex_images_are_named(tmp_path, reader):
    """nnU-Net takes the real part."""
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 3 + 4j, np.complex64), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UnusableImageError, match=r"a\.nii\.gz must hold real values, got complex ones"):
        files(reader).read_images([str(tmp_path / "a.nii.gz")])


def test_further_axes_of_length_1_are_left_out_as_in_nnunets_training(tmp_path):
    values = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(values[..., None], np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    image, properties = files().read_images([str(tmp_path / "a.nii.gz")])
    np.testing.assert_array_equal(image[0], values.T)
    assert list(properties["spacing"]) == [3, 2, 1]
    with pytest.raises(UnusableImageError, match="must be a 3D image"):  # nor does nnU-Net's NibabelIO read it
        files("NibabelIO").read_images([str(tmp_path / "a.nii.gz")])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2), (4, 5, 6, 1, 2)])
def test_files_that_are_no_volumes_are_refused_alike(tmp_path, reader, shape):
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    got = re.escape(f"got an array of shape {shape}; split it into one file for each channel")
    with pytest.raises(UnusableImageError, match=rf"a\.nii\.gz must be a 3D image with one value per voxel, {got}"):
        files(reader).read_images([str(tmp_path / "a.nii.gz")])


@pytest.mark.parametrize("reader", READERS)
def test_nan_in_nifti_files(tmp_path, caplog, reader):
    """SimpleITK reads 0, and so has nnU-Net trained."""
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    if reader == "SimpleITKIO":
        assert files(reader).read_images([str(tmp_path / "a.nii.gz")])[0].min() == 0
        assert "a.nii.gz: NaN and infinite values are read as 0" in caplog.text
    else:
        with pytest.raises(UnusableImageError, match="must hold finite values"):
            files(reader).read_images([str(tmp_path / "a.nii.gz")])
    with pytest.raises(UnusableImageError, match="must hold finite values"):
        files(reader).read_seg(str(tmp_path / "a.nii.gz"))


@pytest.mark.parametrize(("unit", "said"), [("micron", True), ("meter", True), ("mm", False), ("unknown", False)])
def test_units_that_nibabel_readers_ignore_are_said(tmp_path, caplog, unit, said):
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    files("NibabelIO").read_images([str(tmp_path / "a.nii.gz")])
    assert (f"lengths in {unit}s, which nnU-Net's NibabelIO takes for mm" in caplog.text) == said


@pytest.mark.parametrize(("shift_mm", "taken"), [(0.09, True), (0.11, False)])
def test_channels_lie_on_one_grid(tmp_path, shift_mm, taken):
    """nnU-Net prints a warning where the origins differ."""
    channels = []
    for channel, origin in enumerate((0.0, shift_mm)):
        image = sitk.GetImageFromArray(np.full((4, 5, 6), channel, np.float32))
        image.SetOrigin((origin, 0, 0))
        channels.append(str(tmp_path / f"a_000{channel}.nrrd"))
        sitk.WriteImage(image, channels[-1])
    if taken:
        np.testing.assert_array_equal(files().read_images(channels)[0][:, 0, 0, 0], [0, 1])
        return
    message = r"a_0001\.nrrd must have the voxels of \S+a_0000\.nrrd .* 0\.11 mm apart"
    with pytest.raises(UnusableImageError, match=message):
        files().read_images(channels)


@pytest.mark.parametrize(
    ("reader", "ending"),
    [("SimpleITKIO", e) for e in (".nii.gz", ".mha", ".nrrd")] + [("NibabelIO", ".nii"), ("NibabelIO", ".nii.gz")],
)
def test_images_keep_values_and_geometry(tmp_path, reader, ending):
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((-80.0, 55.0, 120.0))
    image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    values, properties = files(reader).read_images([str(tmp_path / f"a{ending}")])
    files(reader).write_image(values[0], str(tmp_path / "new" / f"b{ending}"), properties)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [f"b{ending}"]
    written = sitk.ReadImage(str(tmp_path / "new" / f"b{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, get)() == pytest.approx(getattr(image, get)(), abs=1e-5)


def test_images_are_not_written_where_their_geometry_would_be_lost(tmp_path):
    with pytest.raises(NotImplementedError, match=r"a\.nrrd: images can be written where the reader keeps"):
        files().write_image(np.zeros((2, 2, 2)), str(tmp_path / "a.nrrd"), {"spacing": (1, 1, 1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("method", ["write_seg", "write_image"])
def test_a_file_that_is_cut_off_does_not_get_its_name(tmp_path, monkeypatch, method, ending):
    write = sitk.WriteImage

    def cut_off(image, file, *options):
        write(image, file, *options)
        cut(Path(file))

    monkeypatch.setattr("SimpleITK.WriteImage", cut_off)
    output = tmp_path / f"a{ending}"
    output.write_text("of a former run")
    with pytest.raises(UnwrittenFileError, match=rf"^{output} could not be written: "):
        getattr(files(), method)(SEGMENTATION, str(output), PROPERTIES["SimpleITKIO"])
    assert [file.name for file in tmp_path.iterdir()] == [output.name]
    assert output.read_text() == "of a former run"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("codes", "said"), [((2, 1), True), ((1, 1), True), ((0, 1), False), ((2, 0), False)])
def test_two_positions_in_one_header_are_said(tmp_path, caplog, reader, codes, said):
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4))
    moved = np.eye(4)
    moved[2, 3] = 12
    image.set_sform(moved, code=codes[0])
    image.set_qform(np.eye(4), code=codes[1])
    nibabel.save(image, tmp_path / "a.nii.gz")
    files(reader).read_images([str(tmp_path / "a.nii.gz")])
    assert (
        "qform and sform are 12 mm apart: other programs may show the result beside the scan" in caplog.text
    ) == said


def test_equal_positions_are_not_said(tmp_path, caplog):
    """As rounded as files have them."""
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * (0.5, 0.51, 4)
    image = nibabel.Nifti1Image(np.ones((40, 50, 6), np.float32), affine)
    image.set_qform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    files().read_images([str(tmp_path / "a.nii.gz")])
    assert "apart" not in caplog.text
