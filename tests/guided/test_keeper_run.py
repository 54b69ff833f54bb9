"""Which keeper guides a training, in the order that the documentation promises."""

import pytest
from keeper_runs import training, write_keeper

from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE, NoKeeperError, find_keeper


def found(own, dataset=None, dimension=3):
    return find_keeper(own, dataset, dimension=dimension).run


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
    with pytest.raises(
        ValueError, match=rf"needs one keeper, and these are finished; choose by:\n    REHRSEG_KEEPER={run.folder}"
    ):
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
    """Configuration before length before plans; what nobody has does not count."""
    lowres = write_keeper(tmp_path, configuration="3d_fullres", plans="q")
    own = training(tmp_path, trainer="GuidedTrainer_5epochs")
    assert found(own) == lowres
    plain = write_keeper(tmp_path)
    assert found(own) == plain
    short = write_keeper(tmp_path, trainer="KnowledgeKeeperTrainer_5epochs", plans="r")
    assert found(own) == short
    assert found(training(tmp_path)) == plain
    assert found(training(tmp_path, plans="q")) == lowres
    with pytest.raises(ValueError, match=r"needs one keeper") as error:
        found(training(tmp_path, plans="s"))
    assert str(error.value).splitlines()[1:] == [f"    REHRSEG_KEEPER={run.folder}" for run in (plain, lowres)]


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
    monkeypatch.setenv(KEEPER_VARIABLE, str(variant.folder.parent))
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
