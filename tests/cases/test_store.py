"""Derived cases on disk: content, completeness and refusals."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases import case_files
from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun

REMEDY = "run nnUNetv2_train 509 3d_fullres 0 -tr SelfSRTrainer --val"
NAME = "pseudo_hr"
SHAPE = (8, 6, 7)


def header(**changes):
    fields = {
        "dataset_name": "Dataset509_Test",
        "plans_name": "nnUNetPlans",
        "configuration": "3d_fullres",
        "fold": 0,
        "trainer": "SelfSRTrainer",
        "weights_sha256": "ab" * 32,
        "made_with": {"factor": 4},
    }
    return CaseManifest(**{**fields, **changes})


def labels_of(kind="labels"):
    return {
        "labels": LabelManager({"background": 0, "a": 1, "b": 2}, None),
        "ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
        "regions": LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2]),
    }[kind]


def case_arrays(seed=0, high=3):
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(3, *SHAPE)).astype(np.float32)
    labels = rng.integers(-1, high, size=(1, *SHAPE)).astype(np.int16)
    return data, labels


def write(store, identifier, *, kind="labels", **changes):
    data, labels = case_arrays()
    arrays = {"data": data, "labels": labels, **changes}
    store.write_case(
        identifier,
        **arrays,
        properties={"spacing": [4.0, 1.0, 1.0], "class_locations": {1: "stale"}},
        planned=SimpleNamespace(label_manager=labels_of(kind), hr_patch_size=(8, 4, 4)),
    )
    return arrays


@pytest.fixture
def store(tmp_path):
    store = CaseStore(tmp_path, NAME)
    store.open_or_create(header())
    return store


def test_nnunets_dataset_reads_what_was_written(store):
    arrays = write(store, "case_1")
    dataset = nnUNetDatasetBlosc2(str(store.folder))
    assert dataset.identifiers == ["case_1"]
    data, seg, previous, properties = dataset.load_case("case_1")
    np.testing.assert_array_equal(data[:], arrays["data"])
    np.testing.assert_array_equal(seg[:], arrays["labels"])
    assert seg[:].min() == -1
    assert seg.dtype == np.int8
    assert previous is None
    assert properties["spacing"] == [4.0, 1.0, 1.0]
    locations = class_locations(arrays["labels"], labels_of())
    assert properties["class_locations"].keys() == locations.keys()
    for label, voxels in locations.items():
        np.testing.assert_array_equal(properties["class_locations"][label], voxels)


def test_cases_are_stored_in_chunks_of_the_patch(store, monkeypatch):
    patches = []
    stock = case_files.comp_blosc2_params

    def noted(shape, patch_size, itemsize):
        patches.append(tuple(patch_size))
        return stock(shape, patch_size, itemsize)

    monkeypatch.setattr(case_files, "comp_blosc2_params", noted)
    write(store, "case_1")
    assert set(patches) == {(8, 4, 4)}


def test_labels_above_127_are_kept(store):
    labels = np.full((1, *SHAPE), 300, dtype=np.int32)
    write(store, "case_1", labels=labels)
    np.testing.assert_array_equal(nnUNetDatasetBlosc2(str(store.folder)).load_case("case_1")[1][:], labels)


def test_a_rerun_skips_what_is_complete(store):
    write(store, "case_1")
    again = CaseStore(store.fold_folder, NAME)
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
    rerun = CaseStore(store.fold_folder, NAME)
    rerun.open_or_create(header())
    assert rerun.complete_cases() == []
    for identifier in ("case_1", "case_2"):
        write(rerun, identifier)
    rerun.verify(["case_1", "case_2"], header(), remedy=REMEDY)
    assert sorted(p.name for p in store.fold_folder.iterdir()) == ["pseudo_hr", "pseudo_hr.json", "pseudo_hr_cases"]


def test_a_second_training_may_not_write_at_the_same_time(store):
    other = CaseStore(store.fold_folder, NAME)
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
    other = CaseStore(store.fold_folder, NAME)
    other.open_or_create(header())
    write(store, "case_1")
    write(other, "case_2")
    assert store.complete_cases() == other.complete_cases() == ["case_1", "case_2"]


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "cd" * 32},
        {"plans_name": "other"},
        {"made_with": {"factor": 2}},
        {"made_with": {"factor": 4, "export": "other"}},
        {"made_with": {}},
    ],
)
def test_cases_of_another_header_are_discarded(store, caplog, change):
    write(store, "case_1")
    changed = CaseStore(store.fold_folder, NAME)
    with caplog.at_level(logging.WARNING):
        changed.open_or_create(header(**change))
    assert "discarding 1 cases" in caplog.text
    assert list(store.folder.iterdir()) == []
    assert changed.complete_cases() == []
    write(changed, "case_1")
    changed.verify(["case_1"], header(**change), remedy=REMEDY)


def test_the_trainers_name_is_not_compared(store):
    write(store, "case_1")
    CaseStore(store.fold_folder, NAME).verify(["case_1"], header(trainer="SelfSRTrainer_5epochs"), remedy=REMEDY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
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
        CaseStore(store.fold_folder, NAME).verify([], header(**{field: value}), remedy=REMEDY)


def test_a_reader_compares_only_what_it_expects_of_how_cases_were_made():
    made = header(made_with={"factor": 4, "export": {"image": "smore"}})
    assert made.differences(header()) == []
    assert made.differences(header(made_with={})) == []
    assert made.differences(header(made_with={"factor": 2})) == ["factor 4, not 2"]
    assert made.differences(header(made_with={"export": {"image": "self_sr"}})) == [
        "export {'image': 'smore'}, not {'image': 'self_sr'}"
    ]
    assert header().differences(made) == ["export None, not {'image': 'smore'}"]


def test_verify_names_what_the_cases_were_made_with(store):
    with pytest.raises(ValueError, match=rf"pseudo_hr.json has factor 4, not 2; {REMEDY}"):
        store.verify([], header(made_with={"factor": 2}), remedy=REMEDY)


def test_replaced_weights_are_explained(store):
    with pytest.raises(ValueError, match=rf"\(the checkpoint was replaced after the export\); {REMEDY}"):
        store.verify([], header(weights_sha256="0"), remedy=REMEDY)


def old_header():
    """What version 1 of the format said, with what the cases depend on at the top."""
    content = json.loads(header().model_dump_json())
    del content["made_with"]
    return {**content, "version": 1, "factor": 4, "export": {"image": "self_sr"}, "smore_weights_sha256": None}


def test_cases_of_the_first_format_are_refused_and_made_anew(store, caplog):
    write(store, "case_1")
    entry = store.entries_folder / "case_1.json"
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "fingerprint": "of the old header"}))
    store.manifest_file.write_text(json.dumps(old_header()))
    later = CaseStore(store.fold_folder, NAME)
    assert later.read_manifest() is None
    with pytest.raises(ValueError, match=rf"pseudo_hr.json is no manifest of cases of version 2; {REMEDY}"):
        later.verify(["case_1"], header(), remedy=REMEDY)
    with caplog.at_level(logging.WARNING):
        later.open_or_create(header())
    assert "discarding 1 cases" in caplog.text
    assert later.complete_cases() == []
    assert later.read_manifest() == header()
    write(later, "case_1")
    later.verify(["case_1"], header(), remedy=REMEDY)


def test_verify_without_manifest_or_case(tmp_path, store):
    with pytest.raises(FileNotFoundError, match=f"pseudo_hr.json does not exist.*{REMEDY}"):
        CaseStore(tmp_path / "elsewhere", NAME).verify([], header(), remedy=REMEDY)
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
    data, labels = case_arrays()
    with pytest.raises(ValueError, match="labels must have shape"):
        write(store, "case_1", labels=labels[:, :4])
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"case_1: data must be finite, got nan or inf"):
            write(store, "case_1", data=np.where(data == data.max(), wrong, data))
    assert store.complete_cases() == []
    with pytest.raises(ValueError, match="must be opened with"):
        write(CaseStore(store.fold_folder, NAME), "case_1")


def test_the_fingerprint_tells_how_cases_were_made():
    smore, other = (header(made_with={"factor": 4, "smore_weights_sha256": letter * 64}) for letter in "ab")
    assert len({header().fingerprint(), smore.fingerprint(), other.fingerprint()}) == 3
    assert smore.differences(header()) == []  # stage 2 takes cases however they were made
    assert header(trainer="SelfSRTrainer_5epochs").fingerprint() == header().fingerprint()


@pytest.mark.parametrize("fold", [3, "all"])
def test_a_header_is_that_of_a_run(tmp_path, fold):
    run = FoldRun("Dataset509_Test", "SelfSRTrainer_10epochs", "my_plans", "3d_lowres", fold, tmp_path)
    found = CaseManifest.of_run(run, weights_sha256="ab" * 32, made_with={"factor": 4})
    assert found == header(
        plans_name="my_plans", configuration="3d_lowres", fold=fold, trainer="SelfSRTrainer_10epochs"
    )
    assert CaseManifest.of_run(run, weights_sha256="0").made_with == {}
