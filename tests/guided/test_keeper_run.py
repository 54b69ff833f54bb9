"""Which keeper guides a training, in the order that the documentation promises."""

import json
import re
import shutil

import pytest
from keeper_runs import training, write_keeper

from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE, KeeperRun, NoKeeperError, find_keeper
from rehrseg_nnunet.nnunet import fold_run


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Nobody is writing the damaged files."""
    monkeypatch.setattr(fold_run, "PAUSE_S", 0)


def found(own, dataset=None, dimension=3, **options):
    return find_keeper(own, dataset, dimension=dimension, **options).run


def change_plans(run, change):
    plans = json.loads(run.plans_file.read_text())
    change(plans["configurations"])
    run.plans_file.write_text(json.dumps(plans))


def write_lowres_keeper(results, **options):
    run = write_keeper(results, configuration="3d_lowres", **options)
    lowres = {"inherits_from": "3d_fullres", "data_identifier": "p_3d_lowres", "spacing": [3.0, 2.0, 2.0]}
    change_plans(run, lambda configurations: configurations.update({"3d_lowres": lowres}))
    return run


def test_the_only_finished_one(tmp_path):
    run = write_keeper(tmp_path)
    unfinished = write_keeper(tmp_path, "Dataset611_Begun")
    unfinished.folder.rename(unfinished.folder.with_name("fold_0_kept"))  # no fold of nnU-Net's
    assert found(training(tmp_path)) == run


def test_it_knows_its_pairs(tmp_path):
    write_keeper(tmp_path, names=("T1", "T2", "T1_7T"))
    keeper = find_keeper(training(tmp_path), None, dimension=3)
    assert keeper.dimension == 3
    assert keeper.names(keeper.channels.source) == ["T1", "T2"]
    assert keeper.names(keeper.channels.privileged) == ["T1_7T"]


def test_the_same_fold_or_all_or_0(tmp_path):
    write_keeper(tmp_path, folds=(0, 2))
    assert [found(training(tmp_path, fold=fold)).fold for fold in (0, 1, 2, "all")] == [0, 0, 2, 0]
    (tmp_path / "Dataset610_Pairs/KnowledgeKeeperTrainer__p__3d_fullres/fold_all").mkdir()
    (tmp_path / "Dataset610_Pairs/KnowledgeKeeperTrainer__p__3d_fullres/fold_all/checkpoint_final.pth").touch()
    assert [found(training(tmp_path, fold=fold)).fold for fold in (0, 1, 2, "all")] == [0, "all", 2, "all"]


def test_a_keeper_of_other_folds_must_be_chosen(tmp_path):
    run = write_keeper(tmp_path, folds=(3,))
    said = rf"only fold 3 of {run.folder.parent} is finished, and fold 1 of GuidedTrainer takes .*, all or 0"
    command = "nnUNetv2_train Dataset610_Pairs 3d_fullres 1 -tr KnowledgeKeeperTrainer -p p"
    with pytest.raises(ValueError, match=rf"{said}; run: {command}, or choose by:\n    REHRSEG_KEEPER={run.folder}$"):
        found(training(tmp_path, fold=1))
    other = run.folder.with_name("fold_4")
    shutil.copytree(run.folder, other)
    with pytest.raises(ValueError, match=rf"only folds 3, 4 of .* are finished, (.|\n)*REHRSEG_KEEPER={other}$"):
        found(training(tmp_path))


def test_a_models_folder_is_no_folds(tmp_path, monkeypatch):
    model = write_keeper(tmp_path, folds=(3, 4)).folder.parent
    monkeypatch.setenv(KEEPER_VARIABLE, str(model))
    listed = "".join(rf"\n    REHRSEG_KEEPER={model}/fold_{fold}" for fold in (3, 4))
    with pytest.raises(ValueError, match=rf"REHRSEG_KEEPER must name a fold folder, got {model}; choose by:{listed}$"):
        found(training(tmp_path))


def test_settings_and_before_them_the_variable_name_a_dataset(tmp_path, monkeypatch):
    write_keeper(tmp_path, "Dataset610_Pairs")
    write_keeper(tmp_path, "Dataset061_Others")
    own = training(tmp_path)
    for name in (610, "610", "Dataset610_Pairs"):
        assert found(own, name).dataset == "Dataset610_Pairs"
    for name in ("61", "061", "Dataset061_Others", "Dataset061_Others/"):
        monkeypatch.setenv(KEEPER_VARIABLE, name)
        assert found(own, 610).dataset == "Dataset061_Others"


def test_several_datasets_are_listed(tmp_path):
    write_keeper(tmp_path, "Dataset610_Pairs")
    write_keeper(tmp_path, "Dataset611_Others")
    listed = r"choose by:\n    REHRSEG_KEEPER=Dataset610_Pairs\n    REHRSEG_KEEPER=Dataset611_Others$"
    with pytest.raises(ValueError, match=listed):
        found(training(tmp_path))


def test_of_one_dataset_the_likest_is_taken(tmp_path):
    """Length before plans; what nobody has does not count."""
    other = write_keeper(tmp_path, plans="q")
    own = training(tmp_path, trainer="GuidedTrainer_5epochs")
    assert found(own) == other
    plain = write_keeper(tmp_path)
    assert found(own) == plain
    short = write_keeper(tmp_path, trainer="KnowledgeKeeperTrainer_5epochs", plans="r")
    assert found(own) == short
    assert found(training(tmp_path)) == plain
    assert found(training(tmp_path, plans="q")) == other
    with pytest.raises(ValueError, match=r"needs one keeper") as error:
        found(training(tmp_path, plans="s"))
    assert str(error.value).splitlines()[1:] == [f"    REHRSEG_KEEPER={run.folder}" for run in (plain, other)]


def test_its_own_configuration_comes_first(tmp_path):
    """Even before its own length and plans."""
    fullres = write_keeper(tmp_path, trainer="KnowledgeKeeperTrainer_5epochs")
    own = {"trainer": "GuidedTrainer_5epochs", "configuration": "3d_lowres"}
    assert found(training(tmp_path, **own)) == fullres
    lowres = write_lowres_keeper(tmp_path, plans="q")
    assert found(training(tmp_path, **own)) == lowres
    assert found(training(tmp_path)) == fullres
    assert KeeperRun(lowres).configuration["spacing"] == [3.0, 2.0, 2.0]


def test_variants_and_teachers_must_be_named(tmp_path, monkeypatch):
    variant = write_keeper(tmp_path, trainer="KnowledgeKeeperTrainer_noMatching")
    with pytest.raises(NoKeeperError):
        found(training(tmp_path))
    monkeypatch.setenv(KEEPER_VARIABLE, str(variant.folder))
    assert found(training(tmp_path)) == variant
    teacher = write_keeper(tmp_path, trainer="GuidanceTeacherTrainer")
    monkeypatch.setenv(KEEPER_VARIABLE, str(teacher.folder))
    with pytest.raises(ValueError, match="REHRSEG_KEEPER must name a fold folder of KnowledgeKeeperTrainer, got"):
        found(training(tmp_path))
    monkeypatch.setenv(KEEPER_VARIABLE, str(variant.folder.with_name("fold_1")))
    with pytest.raises(FileNotFoundError, match="REHRSEG_KEEPER must name a finished fold folder"):
        found(training(tmp_path))


def test_without_one_the_commands_are_named(tmp_path):
    with pytest.raises(NoKeeperError) as error:
        found(training(tmp_path))
    assert str(error.value).splitlines()[1:] == [
        "    nnUNetv2_train PAIRS 3d_fullres 0 -tr GuidanceTeacherTrainer -p p",
        "    nnUNetv2_train PAIRS 3d_fullres 0 -tr KnowledgeKeeperTrainer -p p",
    ]
    with pytest.raises(FileNotFoundError, match="no keeper of dataset 610 of a 3d configuration") as named:
        found(training(tmp_path), 610)
    assert "nnUNetv2_train 610 3d_fullres 0 -tr KnowledgeKeeperTrainer" in str(named.value)
    assert not isinstance(named.value, NoKeeperError)  # a control would go on without the one that was asked for


def test_of_the_other_dimension_is_none(tmp_path, monkeypatch):
    run = write_keeper(tmp_path, configuration="2d")
    with pytest.raises(NoKeeperError, match=f"only of others, such as {run.folder}"):
        found(training(tmp_path))
    assert found(training(tmp_path, configuration="2d"), dimension=2) == run
    monkeypatch.setenv(KEEPER_VARIABLE, str(run.folder))
    with pytest.raises(ValueError, match="must name a keeper of a 3d configuration, got"):
        found(training(tmp_path))


def backup(run):
    """Without a configuration in its name."""
    run.folder.parent.rename(run.folder.parent.with_name("KnowledgeKeeperTrainer__backup"))


def renamed(run):
    run.folder.parent.rename(run.folder.parent.with_name(f"{run.folder.parent.name}_old"))


def cut(run):
    run.plans_file.write_text(run.plans_file.read_text()[:100])


def without_channels(run):
    change_plans(run, lambda configurations: [content.pop("guidance_channels") for content in configurations.values()])


def without_dataset_json(run):
    run.plans_file.with_name("dataset.json").unlink()


def without_patch_size(run):
    change_plans(run, lambda configurations: [content.pop("patch_size", None) for content in configurations.values()])


def of_itself(run):
    change_plans(run, lambda configurations: configurations["3d_fullres"].update({"inherits_from": "3d_fullres"}))


def without_architecture(run):
    change_plans(run, lambda configurations: [content.pop("architecture", 0) for content in configurations.values()])


def with_a_channel_less(run):
    file = run.plans_file.with_name("dataset.json")
    content = json.loads(file.read_text())
    content["channel_names"].pop("1")
    file.write_text(json.dumps(content))


DAMAGES = {
    without_patch_size: r"must have a whole configuration 3d_fullres, got a KeyError \('patch_size'\); train",
    of_itself: r"must have a whole configuration 3d_fullres, got a \w+Error \(.*\); train the keeper",
    without_architecture: r"must have a whole configuration 3d_fullres, got a \w+Error \(.*\); train the keeper",
    with_a_channel_less: r"dataset.json must name the keeper's channels, 1 is missing; train the keeper again",
    backup: r"folder must be named <trainer>__<plans>__<configuration>/fold_<fold>, got .*__backup/fold_0",
    renamed: r"3d_fullres_old/plans.json must have the configuration 3d_fullres_old .*, got 3d_fullres, 2d; name the",
    cut: r"fullres/plans.json must be JSON, got a mistake at line 1, column \d+",
    without_channels: r"plans.json must have guidance_channels, which .* writes; train the keeper again: nnUNet",
    without_dataset_json: r"dataset.json is missing; train the keeper again: nnUNetv2_train Dataset611_Others",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_backups_and_damaged_ones_are_left_out(tmp_path, damage):
    """Of the same dataset or another, with a sentence; those of a dataset that was not asked for without."""
    run, said = write_keeper(tmp_path), []
    damage(write_keeper(tmp_path, "Dataset611_Others", folds=(0, 1)))
    assert found(training(tmp_path), warn=said.extend) == run
    assert len(said) == 1  # of both folds
    assert re.match(rf"not taken for a finished keeper: .*{DAMAGES[damage]}", said[0])
    assert found(training(tmp_path), 610, warn=said.extend) == run
    assert len(said) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_nothing_is_left_the_error_says_why(tmp_path, damage):
    damage(write_keeper(tmp_path, "Dataset611_Others"))
    said = rf"is finished in {tmp_path}; not taken for a finished keeper: .*{DAMAGES[damage]}"
    with pytest.raises(NoKeeperError, match=said):
        found(training(tmp_path))
    with pytest.raises(FileNotFoundError, match=said) as named:
        found(training(tmp_path), 611)
    assert "nnUNetv2_train 611 3d_fullres 0 -tr KnowledgeKeeperTrainer" in str(named.value)


@pytest.mark.parametrize("damage", [cut, without_channels, without_dataset_json])
def test_one_that_is_named_is_refused(tmp_path, monkeypatch, damage):
    write_keeper(tmp_path)
    named = write_keeper(tmp_path, "Dataset611_Others")
    damage(named)
    monkeypatch.setenv(KEEPER_VARIABLE, str(named.folder))
    with pytest.raises((ValueError, FileNotFoundError), match=DAMAGES[damage]):
        found(training(tmp_path))


def test_without_a_training_it_is_logged(tmp_path, caplog):
    write_keeper(tmp_path)
    cut(write_keeper(tmp_path, "Dataset611_Others"))
    found(training(tmp_path))
    assert "not taken for a finished keeper" in caplog.text
