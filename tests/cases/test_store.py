"""Pseudo-HR cases on disk: content, completeness and refusals."""

import logging
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.store import (
    PseudoHRManifest,
    PseudoHRStore,
    hash_weights,
    robust_min_max,
)

REMEDY = "run nnUNetv2_train 509 3d_fullres 0 -tr SelfSRTrainer --val"
SHAPE = (8, 6, 7)


def header(**changes):
    fields = {
        "factor": 4,
        "dataset_name": "Dataset509_Test",
        "plans_name": "nnUNetPlans",
        "configuration": "3d_fullres",
        "fold": 0,
        "trainer": "SelfSRTrainer",
        "weights_sha256": "ab" * 32,
    }
    return PseudoHRManifest(**{**fields, **changes})


def labels_of(kind="labels"):
    return {
        "labels": LabelManager({"background": 0, "a": 1, "b": 2}, None),
        "ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
        "regions": LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2]),
    }[kind]


def case_arrays(seed=0, high=3):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    labels = rng.integers(-1, high, size=(1, *SHAPE)).astype(np.int16)
    return image, rng.random(SHAPE).astype(np.float32), labels


def write(store, identifier, *, kind="labels", **changes):
    image, uncertainty, labels = case_arrays()
    arrays = {"image": image, "uncertainty": uncertainty, "labels": labels, **changes}
    store.write_case(
        identifier,
        **arrays,
        properties={"spacing": [4.0, 1.0, 1.0], "class_locations": {1: "stale"}},
        label_manager=labels_of(kind),
        hr_patch_size=(8, 4, 4),
    )
    return arrays


@pytest.fixture
def store(tmp_path):
    store = PseudoHRStore(tmp_path)
    store.open_or_create(header())
    return store


def test_nnunets_dataset_reads_what_was_written(store):
    arrays = write(store, "case_1")
    dataset = nnUNetDatasetBlosc2(str(store.folder))
    assert dataset.identifiers == ["case_1"]
    data, seg, previous, properties = dataset.load_case("case_1")
    np.testing.assert_array_equal(data[:-1], arrays["image"])
    np.testing.assert_allclose(data[-1], robust_min_max(arrays["uncertainty"]))
    np.testing.assert_array_equal(seg[:], arrays["labels"])
    assert seg[:].min() == -1
    assert seg.dtype == np.int8
    assert previous is None
    assert properties["rehrseg_factor"] == 4
    assert properties["spacing"] == [4.0, 1.0, 1.0]


def test_labels_above_127_are_kept(store):
    labels = np.full((1, *SHAPE), 300, dtype=np.int32)
    write(store, "case_1", labels=labels)
    np.testing.assert_array_equal(nnUNetDatasetBlosc2(str(store.folder)).load_case("case_1")[1][:], labels)


@pytest.mark.parametrize("kind", ["labels", "ignore", "regions"])
def test_class_locations_are_those_of_the_hr_labels(kind):
    labels = case_arrays(high=4)[2]
    locations = class_locations(labels, labels_of(kind))
    members = {1: [1], 2: [2], (1, 2): [1, 2], (-1, 0, 1, 2): [-1, 0, 1, 2]}
    expected_keys = {"labels": [1, 2], "ignore": [1, 2, (-1, 0, 1, 2)], "regions": [(1, 2), 2, (-1, 0, 1, 2)]}
    assert list(locations) == expected_keys[kind]
    for key, voxels in locations.items():
        assert {tuple(v) for v in voxels} == {tuple(v) for v in np.argwhere(np.isin(labels, members[key]))}


def test_uncertainty_is_scaled_robustly():
    uncertainty = np.random.default_rng(0).random((20, 20, 20))
    uncertainty[0, 0, 0] = 1e6
    scaled = robust_min_max(uncertainty)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert np.median(scaled) == pytest.approx(0.5, abs=0.05)  # one hot voxel flattens plain min-max to 0
    assert (robust_min_max(np.full((2, 2), 0.3)) == 0).all()
    with pytest.raises(ValueError, match="uncertainty must be finite"):
        robust_min_max(np.array([0.0, np.nan]))


def test_a_rerun_skips_what_is_complete(store):
    write(store, "case_1")
    again = PseudoHRStore(store.fold_folder)
    again.open_or_create(header())
    assert again.is_complete("case_1")
    assert not again.is_complete("case_2")
    assert again.complete_cases() == ["case_1"]


@pytest.mark.parametrize("dies_at", ["save_case", "replace", "entry"])
def test_a_kill_leaves_no_case_that_counts_and_a_rerun_repairs(store, monkeypatch, dies_at):
    import rehrseg_nnunet.cases.store as module

    write(store, "case_1")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    targets = {
        "save_case": (module, "save_case"),
        "replace": (case_files, "move_into_place"),
        "entry": (module, "write_atomically"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*targets[dies_at], killed)
        for identifier in ("case_1", "case_2"):
            with pytest.raises(KeyboardInterrupt):
                write(store, identifier)
    rerun = PseudoHRStore(store.fold_folder)
    rerun.open_or_create(header())
    assert rerun.complete_cases() == []
    for identifier in ("case_1", "case_2"):
        write(rerun, identifier)
    rerun.verify(["case_1", "case_2"], header(), remedy=REMEDY)
    assert sorted(p.name for p in store.fold_folder.iterdir()) == ["pseudo_hr", "pseudo_hr.json", "pseudo_hr_cases"]


def test_a_second_training_may_not_write_at_the_same_time(store):
    other = PseudoHRStore(store.fold_folder)
    write(store, "case_1")
    with store.exclusive():
        (store.fold_folder / "pseudo_hr_tmp_case_2").mkdir()  # of the one that is writing
        with (
            pytest.raises(RuntimeError, match=f"{store.fold_folder}: another process is writing there; wait .*stop it"),
            other.exclusive(),
        ):
            pytest.fail("must not come here")
        assert (store.fold_folder / "pseudo_hr_tmp_case_2").exists()
    with other.exclusive():
        other.open_or_create(header())
        assert other.complete_cases() == ["case_1"]


def test_what_killed_exports_left_is_removed(store):
    write(store, "case_1")
    names = {path.name for path in store.fold_folder.rglob("*")}
    (store.fold_folder / "pseudo_hr_tmp_case_2").mkdir()
    (store.fold_folder / "pseudo_hr_tmp_case_2" / "case_2.b2nd").touch()
    (store.fold_folder / "pseudo_hr.json.tmp").touch()
    (store.entries_folder / "case_2.json.tmp").touch()
    with store.exclusive():
        assert {path.name for path in store.fold_folder.rglob("*")} == {*names, "pseudo_hr.lock"}


def test_two_processes_write_different_cases(store):
    other = PseudoHRStore(store.fold_folder)
    other.open_or_create(header())
    write(store, "case_1")
    write(other, "case_2")
    assert store.complete_cases() == other.complete_cases() == ["case_1", "case_2"]


@pytest.mark.parametrize("change", [{"weights_sha256": "cd" * 32}, {"factor": 2}, {"plans_name": "other"}])
def test_cases_of_another_header_are_discarded(store, caplog, change):
    write(store, "case_1")
    changed = PseudoHRStore(store.fold_folder)
    with caplog.at_level(logging.WARNING):
        changed.open_or_create(header(**change))
    assert "discarding 1 cases" in caplog.text
    assert list(store.folder.iterdir()) == []
    assert changed.complete_cases() == []
    write(changed, "case_1")
    changed.verify(["case_1"], header(**change), remedy=REMEDY)


def test_the_trainers_name_is_not_compared(store):
    write(store, "case_1")
    PseudoHRStore(store.fold_folder).verify(["case_1"], header(trainer="SelfSRTrainer_5epochs"), remedy=REMEDY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", 2),
        ("fold", 1),
        ("fold", "all"),
        ("plans_name", "p"),
        ("dataset_name", "d"),
        ("configuration", "c"),
        ("weights_sha256", "0"),
    ],
)
def test_verify_names_what_differs(store, field, value):
    with pytest.raises(ValueError, match=rf"pseudo_hr.json has {field} .*, not {value!r}.*; {REMEDY}"):
        PseudoHRStore(store.fold_folder).verify([], header(**{field: value}), remedy=REMEDY)


def test_verify_without_manifest_or_case(tmp_path, store):
    with pytest.raises(FileNotFoundError, match=f"pseudo_hr.json does not exist.*{REMEDY}"):
        PseudoHRStore(tmp_path / "elsewhere").verify([], header(), remedy=REMEDY)
    with pytest.raises(FileNotFoundError, match=f"case_7.b2nd: the case was not written; {REMEDY}"):
        store.verify(["case_7"], header(), remedy=REMEDY)
    store.manifest_file.write_text("{}")
    with pytest.raises(ValueError, match=f"is no manifest.*{REMEDY}"):
        store.verify([], header(), remedy=REMEDY)


@pytest.mark.parametrize("suffix", [".b2nd", "_seg.b2nd", ".pkl"])
def test_verify_finds_truncated_and_missing_files(store, suffix):
    write(store, "case_1")
    file = store.folder / f"case_1{suffix}"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"case_1{suffix} must have .* bytes, got .*{REMEDY}"):
        store.verify(["case_1"], header(), remedy=REMEDY)
    assert not store.is_complete("case_1")
    file.unlink()
    with pytest.raises(ValueError, match=f"case_1{suffix} is missing"):
        store.verify(["case_1"], header(), remedy=REMEDY)


def test_verify_opens_the_arrays(store):
    write(store, "case_1")
    file = store.folder / "case_1.b2nd"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"case_1\.b2nd cannot be read"):
        store.verify(["case_1"], header(), remedy=REMEDY)
    assert not store.is_complete("case_1")  # so that the remedy mends it


def test_write_case_refuses_shapes_that_do_not_match(store):
    image, uncertainty, labels = case_arrays()
    with pytest.raises(ValueError, match="labels must have shape"):
        write(store, "case_1", labels=labels[:, :4])
    with pytest.raises(ValueError, match="uncertainty must have shape"):
        write(store, "case_1", uncertainty=uncertainty.T)
    with pytest.raises(ValueError, match="must be a multiple of factor 4, got 6"):
        write(store, "case_1", image=image[:, :6], uncertainty=uncertainty[:6], labels=labels[:, :6])
    with pytest.raises(ValueError, match=r"case_1: .* must be finite.*smaller learning_rate"):
        write(store, "case_1", image=np.where(image == image.max(), np.nan, image))
    with pytest.raises(ValueError, match="must be opened with"):
        write(PseudoHRStore(store.fold_folder), "case_1")


def test_weights_hash():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    reference = hash_weights(weights)
    assert hash_weights(OrderedDict(reversed(weights.items()))) == reference
    assert hash_weights({**weights, "a": weights["a"].T.contiguous().T}) == reference
    for changed in (
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + 1e-6},
        {"x": weights["a"], "b": weights["b"], "c": weights["c"]},
    ):
        assert hash_weights(changed) != reference
    with pytest.raises(ValueError, match="state_dict must hold tensors only, got int for n"):
        hash_weights({"n": 3})


def test_the_fingerprint_tells_how_cases_were_made():
    smore = header(export={"image": "smore"}, smore_weights_sha256="a" * 64)
    other = header(export={"image": "smore"}, smore_weights_sha256="b" * 64)
    assert len({header().fingerprint(), smore.fingerprint(), other.fingerprint()}) == 3
    assert header().differences(smore) == []  # stage 2 takes cases however they were made
