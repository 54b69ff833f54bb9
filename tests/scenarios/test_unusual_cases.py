"""Plan, preprocess, both trainings and both predict commands on unusual files and cases."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from known_answers import oblique
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from workspace import assert_same_field_of_view, log_of

from rehrseg_nnunet.cases.phantom import LABELS, make_phantom

pytestmark = pytest.mark.slow

CT, MIXED = 31, 32
FINE = 24  # slices of the phantom that cases take theirs from


@dataclass(frozen=True)
class Case:
    """Spacings and sizes, slice axis first, and where that axis is in the file (x, y, z = 0, 1, 2)."""

    slices: int
    spacing_mm: tuple[float, float, float]
    in_plane: tuple[int, int]
    axis: int = 2
    rotation: np.ndarray = None

    def file(self, array):
        """An image of an array (slices, ...)."""
        image = sitk.GetImageFromArray(np.moveaxis(array, 0, 2 - self.axis))
        spacing = list(self.spacing_mm[:0:-1])
        spacing.insert(self.axis, self.spacing_mm[0])
        image.SetSpacing(spacing)
        image.SetOrigin([-20.0, 31.0, 7.0])
        image.SetDirection((np.eye(3) if self.rotation is None else self.rotation).ravel().tolist())
        return image


def write_dataset(folders, number, cases, *, ending, hounsfield=False):
    """A raw dataset of phantoms; as in CT, integers with air (-1000) around if asked for."""
    raw = folders.raw / f"Dataset{number:03d}_Unusual"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for number_of_case, (name, case) in enumerate(cases.items()):
        image, labels = make_phantom((FINE, *case.in_plane), np.random.default_rng(number_of_case))
        slices = (2 * np.arange(case.slices) + 1) * FINE // (2 * case.slices)
        image, labels = image[slices], labels[slices]
        if hounsfield:
            image = np.round(image).astype(np.int16)
            image[..., :2], image[..., -2:] = -1000, -1000
        sitk.WriteImage(case.file(image), str(raw / "imagesTr" / f"{name}_0000{ending}"))
        sitk.WriteImage(case.file(labels), str(raw / "labelsTr" / f"{name}{ending}"))
    dataset = {
        "channel_names": {"0": "CT" if hounsfield else "MRI"},
        "labels": LABELS,
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))


def train_both(folders, number, *, validation):
    """Stage 1 and stage 2 of fold 0, whose validation cases are given."""
    folders.prepare(number)
    plans = folders.plans(number)
    names = [file.name.split("_0000")[0] for file in (folders.raw / folders.dataset(number) / "imagesTr").iterdir()]
    split = {"train": sorted(set(names) - set(validation)), "val": sorted(validation)}
    (plans.parent / "splits_final.json").write_text(json.dumps([split]))
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        folders.train(trainer, number)
    return json.loads(plans.read_text())


def assert_finite_losses(folder):
    logged = torch.load(folder / "checkpoint_final.pth", weights_only=False)["logging"]
    for key in ("train_losses", "val_losses"):
        assert len(logged[key]) == 2
        assert np.isfinite(logged[key]).all(), key


def assert_predictions_fit(folders, number, cases, tmp_path, *, factor, validation, ending):
    """Both commands' files, and the trainer's own for validation cases, have their input's field of view."""
    images = folders.raw / folders.dataset(number) / "imagesTr"
    lr, hr = folders.predict(images, tmp_path / "lr", number), folders.predict_hr(images, tmp_path / "hr", number)
    fold = folders.fold("REHRSegTrainer", number)
    assert sorted(file.name for file in (fold / "validation_hr").iterdir()) == [
        f"{name}{ending}" for name in validation
    ]
    for name, case in cases.items():
        source = sitk.ReadImage(str(images / f"{name}_0000{ending}"))
        for folder, r in ((lr, 1), (hr, factor), (fold / "validation", 1), (fold / "validation_hr", factor)):
            if folder in (lr, hr) or name in validation:
                result = sitk.ReadImage(str(folder / f"{name}{ending}"))
                assert_same_field_of_view(source, result, factor=r, axis=case.axis)


CT_CASES = {
    f"ct{i}": Case(slices, (4.8, 0.68, 0.68), (17, 23), axis=0, rotation=oblique(i))
    for i, slices in enumerate((6, 7, 5, 6, 8, 6))
}


@pytest.fixture(scope="module")
def ct(nnunet):
    """Slices along the first axis of oblique MHA files of odd sizes, 4.8 mm on 0.68 mm, in Hounsfield units."""
    write_dataset(nnunet, CT, CT_CASES, ending=".mha", hounsfield=True)
    return train_both(nnunet, CT, validation=["ct4"])


def test_slices_first_in_oblique_ct_of_7_times_thicker_slices(nnunet, ct, tmp_path):
    assert ct["transpose_forward"] == [2, 0, 1]
    assert ct["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    folder = nnunet.fold("SelfSRTrainer", CT)
    manifest = json.loads((folder / "pseudo_hr.json").read_text())
    assert manifest["made_with"]["factor"] == 7
    assert "nnU-Net's resampling" not in log_of(folder)
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        assert_finite_losses(nnunet.fold(trainer, CT))
    pseudo = nnUNetDatasetBlosc2(str(folder / "pseudo_hr"))
    assert sorted(pseudo.identifiers) == ["ct0", "ct1", "ct2", "ct3", "ct5"]
    for name in pseudo.identifiers:  # the image and U
        assert pseudo.load_case(name)[0].shape == (2, 7 * CT_CASES[name].slices, 17, 23)
    assert_predictions_fit(nnunet, CT, CT_CASES, tmp_path, factor=7, validation=["ct4"], ending=".mha")


def test_validation_file_that_cannot_be_written_is_named_and_made_by_the_next_val(nnunet, ct, monkeypatch):
    file = nnunet.fold("REHRSegTrainer", CT) / "validation_hr" / "ct4.mha"
    whole = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    file.unlink()
    write = sitk.WriteImage

    def write_half(image, target, *options):
        write(image, target, *options)
        if ".rehrseg-partial-" in target:
            Path(target).write_bytes(b"half")
            raise RuntimeError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(sitk, "WriteImage", write_half)
        with pytest.raises(OSError, match=f"{file} could not be written: no space left; .*--val"):
            nnunet.train("REHRSegTrainer", CT, "--val")
    assert list(file.parent.iterdir()) == []
    nnunet.train("REHRSegTrainer", CT, "--val")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), whole)
    assert list(file.parent.iterdir()) == [file]


MIXED_CASES = {
    f"mixed{i}": Case(slices, (thickness, 1.0, 1.1), in_plane)
    for i, (slices, thickness, in_plane) in enumerate(
        (
            (8, 3.0, (21, 23)),
            (1, 3.0, (20, 23)),
            (2, 3.0, (21, 19)),
            (3, 4.0, (21, 23)),
            (6, 4.0, (18, 25)),
            (7, 3.0, (21, 23)),
            (4, 6.0, (21, 23)),
            (1, 6.0, (21, 23)),
        )
    )
}


@pytest.fixture(scope="module")
def mixed(nnunet):
    """From 1 to 8 slices of 3, 4 and 6 mm."""
    write_dataset(nnunet, MIXED, MIXED_CASES, ending=".nii.gz")
    return train_both(nnunet, MIXED, validation=["mixed4", "mixed7"])


def test_few_slices_and_spacings_that_differ(nnunet, mixed, tmp_path):
    assert mixed["configurations"]["3d_fullres"]["spacing"][0] == pytest.approx(3.0)
    folder = nnunet.fold("SelfSRTrainer", MIXED)
    assert json.loads((folder / "pseudo_hr.json").read_text())["made_with"]["factor"] == 3
    named = re.findall(r"WARNING: (\w+) has slices of (\d) mm, the plans 3 mm", log_of(folder))
    assert named == [("mixed3", "4"), ("mixed6", "6")]  # training cases that are not of 3 mm
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        assert_finite_losses(nnunet.fold(trainer, MIXED))
    assert_predictions_fit(
        nnunet, MIXED, MIXED_CASES, tmp_path, factor=3, validation=["mixed4", "mixed7"], ending=".nii.gz"
    )
