import io
import json
import re
import shutil
import zipfile

import pytest
import torch

from rehrseg_nnunet.prediction.model_folder import Wanted, open_model, parse_folds, trained_model

ANY = Wanted()
NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
CHECKPOINT = {"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "3d_fullres"}}


def write_model(folder, *, folds=(0,), name="final", content=CHECKPOINT):
    folder.mkdir(parents=True, exist_ok=True)
    plans = {"of": folder.name, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0}, "file_ending": ".nii.gz"}))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        torch.save(content, folder / f"fold_{fold}" / f"checkpoint_{name}.pth")
    return folder


@pytest.fixture
def results(tmp_path):
    write_model(tmp_path / "results" / "Dataset001_A" / NAME, folds=(1, 0))
    return tmp_path / "results"


def found(path, wanted=ANY):
    with open_model(path, wanted) as folder:
        return folder


@pytest.mark.parametrize("place", [f"Dataset001_A/{NAME}", "Dataset001_A", "."])
def test_a_model_is_found_in_its_folder_its_datasets_and_the_results(results, place):
    assert found(results / place) == results / "Dataset001_A" / NAME


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("trainer", ["SelfSRTrainer", "GuidanceTeacherTrainer_5epochs", "KnowledgeKeeperTrainer"])
def test_models_that_cannot_segment_are_passed_over(results, tmp_path, kind, trainer):
    other = write_model(results / "Dataset001_A" / f"{trainer}__nnUNetPlans__3d_fullres")
    path = results if kind == "folder" else packed(results, tmp_path / "model.zip")
    with open_model(path, ANY) as folder:
        assert json.loads((folder / "plans.json").read_text())["of"] == NAME
    shutil.rmtree(results / "Dataset001_A" / NAME)
    path = results if kind == "folder" else packed(results, tmp_path / "model.zip")
    with pytest.raises(FileNotFoundError, match=f"got only .*{other.name}, which cannot segment"):
        found(path)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_keepers_are_found_where_images_are_wanted(results, tmp_path, kind):
    """Beside their teacher, and a network that segments."""
    images = Wanted(kind="KnowledgeKeeperTrainer")
    names = [f"{trainer}__nnUNetPlans__3d_fullres" for trainer in ("GuidanceTeacherTrainer", "KnowledgeKeeperTrainer")]
    path = results if kind == "folder" else packed(results, tmp_path / "model.zip")
    with pytest.raises(FileNotFoundError, match=f"got only .*{NAME}, none of KnowledgeKeeperTrainer"):
        found(path, images)
    for name in names:
        write_model(results / "Dataset001_A" / name)
    path = results if kind == "folder" else packed(results, tmp_path / "model.zip")
    with open_model(path, images) as folder:
        assert json.loads((folder / "plans.json").read_text())["of"] == names[1]
    assert found(write_model(tmp_path / "renamed" / "keeper").parent, images).name == "keeper"


def test_a_renamed_folder_is_a_model(tmp_path):
    assert found(write_model(tmp_path / "mine")) == tmp_path / "mine"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_of_several_models_one_is_chosen(results, tmp_path, kind):
    other = "nnUNetTrainer__cpu__3d_fullres"
    write_model(results / "Dataset001_A" / other)
    path = results / "Dataset001_A" if kind == "folder" else packed(results, tmp_path / "models.zip")
    with pytest.raises(ValueError, match=rf"must hold one model, got .*{other}, .*{NAME}; choose with -tr, -p and -c"):
        found(path)
    with open_model(path, Wanted(plans="cpu")) as folder:
        assert json.loads((folder / "plans.json").read_text())["of"] == other
    with pytest.raises(FileNotFoundError, match=rf"has no such model, only: .*{NAME}; choose with"):
        found(path, Wanted(trainer="REHRSegTrainer"))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"-m must be an existing folder or zip file, got .*none"):
        found(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="must hold a trained nnU-Net model"):
        found(tmp_path)


def test_a_fold_is_told_from_its_model(results):
    model = results / "Dataset001_A" / NAME
    with pytest.raises(ValueError, match=rf"got its fold .*; use -m {re.escape(str(model))} -f 1$"):
        found(model / "fold_1")


def packed(results, file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(results.rglob("*")):
            archive.write(path, path.relative_to(results))
    return file


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_zip_file_is_unpacked_for_a_while_with_what_is_needed(results, tmp_path, scratch):
    model = results / "Dataset001_A" / NAME
    (model / "fold_0" / "validation").mkdir()
    (model / "fold_0" / "validation" / "summary.json").touch()
    (model / "fold_0" / "progress.png").touch()
    with open_model(packed(results, tmp_path / "model.zip"), ANY) as folder:
        assert folder.is_relative_to(scratch)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert files == [
            "dataset.json",
            "fold_0/checkpoint_final.pth",
            "fold_1/checkpoint_final.pth",
            "plans.json",
        ]
        assert trained_model(folder).folds == (0, 1)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_unpacked_is_removed_when_the_work_ends_early(results, tmp_path, scratch, error):
    with pytest.raises(error), open_model(packed(results, tmp_path / "model.zip"), ANY):
        raise error
    assert list(scratch.iterdir()) == []


def test_names_in_a_zip_file_lead_nowhere_else(tmp_path, scratch):
    checkpoint = io.BytesIO()
    torch.save(CHECKPOINT, checkpoint)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for file in ("plans.json", "dataset.json"):
            archive.writestr(f"../../evil/{file}", "{}")
        archive.writestr("../../evil/fold_0/checkpoint_final.pth", checkpoint.getvalue())
        archive.writestr("../../evil/fold_0/../../outside.pth", "x")
        archive.writestr("/absolute/plans.txt", "x")
    before = sorted(tmp_path.rglob("*"))
    with open_model(tmp_path / "evil.zip", ANY) as folder:
        inside = [path for path in folder.rglob("*") if path.is_file()]
        assert len(inside) == 3
        assert all(path.resolve().is_relative_to(scratch.resolve()) for path in inside)
        assert sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(scratch)) == [
            path for path in before if not path.is_relative_to(scratch)
        ]


def truncated(content):
    return content[: len(content) // 2]


def corrupted(content):
    """Change bytes of a compressed checkpoint, which its check sum then betrays."""
    middle = content.index(b"checkpoint_final.pth") + 120
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 60]) + content[middle + 60 :]


@pytest.mark.parametrize("damage", [truncated, corrupted, lambda content: b"no zip file"])
def test_a_damaged_zip_file_is_named(results, tmp_path, scratch, damage):
    file = packed(results, tmp_path / "model.zip")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.zip must be a zip file as nnUNetv2_export_model_to_zip writes it"):
        found(file)
    assert list(scratch.iterdir()) == []


def test_a_zip_file_without_a_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("note.txt", "x")
    with pytest.raises(FileNotFoundError, match=r"a\.zip must hold a trained nnU-Net model"):
        found(tmp_path / "a.zip")


def test_a_zip_file_that_lacks_dataset_json(results, tmp_path):
    (results / "Dataset001_A" / NAME / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"must hold Dataset001_A/{NAME}/dataset.json, got none; export"):
        found(packed(results, tmp_path / "model.zip"))


def test_a_full_disk_is_named(results, tmp_path, scratch, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = packed(results, tmp_path / "model.zip")
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match=rf"could not be unpacked to {scratch}.*No space left on device.*TMPDIR"):
        found(file)
    assert list(scratch.iterdir()) == []


def test_all_folds_are_taken_but_for_fold_all_beside_them(tmp_path):
    model = write_model(tmp_path / "a", folds=(3, 0, "all"))
    assert trained_model(model).folds == (0, 3)
    assert trained_model(model, folds=["all"]).folds == ("all",)
    assert trained_model(write_model(tmp_path / "b", folds=("all",))).folds == ("all",)
    of = trained_model(model, folds=[3])
    assert (of.folds, of.trainer, of.configuration) == ((3,), "nnUNetTrainer", "3d_fullres")


def test_missing_checkpoints_are_named(tmp_path):
    model = write_model(tmp_path / "a", folds=(0,), name="best")
    with pytest.raises(FileNotFoundError, match=r"^fold 0 is not trained: .*checkpoint_final\.pth .*folds: none; cho"):
        trained_model(model)
    assert trained_model(model, checkpoint="checkpoint_best.pth").folds == (0,)
    with pytest.raises(FileNotFoundError, match=r"^fold 1 is not trained: fold_1/\S+ does not exist in a\.zip; tra"):
        trained_model(model, folds=[1], checkpoint="checkpoint_best.pth", source="a.zip")


@pytest.mark.parametrize("content", [{"network_weights": {}}, {"other": 1}])
def test_another_file_is_no_checkpoint(tmp_path, content):
    with pytest.raises(ValueError, match=r"must be an nnU-Net checkpoint"):
        trained_model(write_model(tmp_path / "a", content=content))


def test_folds_of_the_command_line():
    assert parse_folds(["0", "all", 3]) == [0, "all", 3]
    with pytest.raises(ValueError, match="-f must be numbers or all, got x"):
        parse_folds(["x"])
    with pytest.raises(ValueError, match="-f must name every fold once, got 0 1 0"):
        parse_folds(["0", "1", 0])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("plans.json", "{", r"plans\.json must be JSON, got a mistake at line 1"),
        ("plans.json", "{}", r"plans\.json must be nnU-Net plans, got no configurations in it; copy the model anew"),
        (
            "plans.json",
            '{"configurations": {"2d": {}}}',
            r"plans\.json must have the configuration .*3d_fullres, got 2d",
        ),
        ("dataset.json", "[]", r"dataset\.json must hold a JSON object, got a list"),
        ("dataset.json", "{}", r"dataset\.json must have the key labels, file_ending"),
    ],
)
def test_damaged_descriptions_are_named(tmp_path, file, text, message):
    model = write_model(tmp_path / "a")
    (model / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        trained_model(model)


def test_what_is_wrong_in_a_zip_file_is_said_of_the_zip_file(results, tmp_path):
    (results / "Dataset001_A" / NAME / "fold_1" / "checkpoint_final.pth").write_text("x")
    file = packed(results, tmp_path / "model.zip")
    with (
        open_model(file, ANY) as folder,
        pytest.raises(ValueError, match=rf"^{file}: fold_1/checkpoint_final\.pth must be an nnU-Net checkpoint"),
    ):
        trained_model(folder, source=str(file))


def test_another_model_than_is_meant_is_refused_whatever_its_folder_is_called(tmp_path):
    model = write_model(tmp_path / "mine")
    assert trained_model(model, wanted=Wanted("nnUNetTrainer", "nnUNetPlans", "3d_fullres")).folds == (0,)
    for number, flag in enumerate(("-tr", "-p", "-c")):
        wanted = Wanted(*(None if index != number else "other" for index in range(3)))
        with pytest.raises(ValueError, match=rf"{flag} must be that of the model in {model}, .*, got other; leave it"):
            trained_model(model, wanted=wanted)


def save_weights(model, fold, **weights):
    torch.save({**CHECKPOINT, "network_weights": weights}, model / f"fold_{fold}" / "checkpoint_final.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_named(tmp_path, value):
    model = write_model(tmp_path / "a")
    save_weights(model, 0, a=torch.zeros(2), b=torch.tensor([0, value]))
    with pytest.raises(ValueError, match=r"fold_0/checkpoint_final\.pth must hold finite weights, got NaN .* in b;"):
        trained_model(model)


@pytest.mark.parametrize("weights", [{"a": torch.zeros(3)}, {"b": torch.zeros(2)}])
def test_folds_of_different_networks_are_refused(tmp_path, weights):
    model = write_model(tmp_path / "a", folds=(0, 1))
    save_weights(model, 0, a=torch.zeros(2))
    save_weights(model, 1, **weights)
    with pytest.raises(ValueError, match=r"fold_1/checkpoint_final\.pth must hold the same network as fold 0"):
        trained_model(model)
    assert trained_model(model, folds=[1]).folds == (1,)


@pytest.mark.parametrize("error", [RuntimeError("no trainer"), KeyError("spacing")])
def test_parts_that_do_not_fit_together_are_said_of_the_model(tmp_path, error):
    class Predictor:
        def initialize_from_trained_model_folder(self, *_, **__):
            raise error

    with pytest.raises(ValueError, match=rf"^{tmp_path / 'a'} must be a model whose .* \(nnUNetTrainer\), got .*; co"):
        trained_model(write_model(tmp_path / "a")).load_into(Predictor())


def test_the_folder_is_not_changed(results):
    model = results / "Dataset001_A" / NAME
    before = sorted(model.rglob("*"))
    found(results)
    assert sorted(model.rglob("*")) == before
    shutil.rmtree(results)
