import errno
import os
import pickle
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
