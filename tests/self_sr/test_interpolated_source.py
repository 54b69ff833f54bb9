"""Where stage 1's near-isotropic cases come from."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan

from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.self_sr.interpolated_source import SMORECases, SplineCases, choose_source
from rehrseg_nnunet.smore.export import STORE_NAME, export_smore
from rehrseg_nnunet.smore.network import WDSR

FACTOR = 2
CASES = ["case_1", "case_2"]
PLANNED = plan(LabelManager({"background": 0, "a": 1}, None), factor=FACTOR)


def network(seed=0):
    torch.manual_seed(seed)
    return WDSR(1, 2, FACTOR, blocks=1, features=2).eval()


@pytest.fixture
def own(tmp_path):
    return FoldRun("Dataset009_X", "SelfSRTrainer_10epochs", "my_plans", "3d_fullres", 0, tmp_path / "results")


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    for number, identifier in enumerate(CASES):
        image = np.random.default_rng(number).normal(size=(1, 4, 8, 8)).astype(np.float32)
        sizes = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(image, (image > 0).astype(np.int8), {}, str(folder / identifier), **sizes)
    return nnUNetDatasetBlosc2(str(folder), CASES)


def train_smore(own, dataset, identifiers=CASES, trainer="SMORETrainer"):
    """A finished SMORE and its cases."""
    run = own.sibling(trainer)
    run.folder.mkdir(parents=True)
    torch.save({"network_weights": network().state_dict()}, run.final_checkpoint)
    store = CaseStore(run.folder, STORE_NAME)
    weights = hash_weights(network().state_dict())
    store.open_or_create(CaseManifest.of_run(run, weights_sha256=weights, made_with={"factor": FACTOR}))
    export_smore(network(), dataset, identifiers, store, PLANNED)
    return run


def choose(own, dataset, *, required=False, identifiers=CASES, lines=None):
    log = pytest.fail if lines is None else lines.append
    return choose_source(own, dataset, identifiers, PLANNED, smore_required=required, log=log)


def test_without_smore_cases_are_interpolated_by_splines(own, dataset):
    source = choose(own, dataset)
    assert isinstance(source, SplineCases)
    assert source.fingerprint() == {}
    folder = interpolated_folder(dataset.source_folder, FACTOR)
    source.check(CASES)
    assert not folder.exists()  # nothing is written before it is needed
    cases = source.cases(CASES[:1])
    assert (cases.identifiers, cases.source_folder) == (CASES[:1], str(folder))
    assert sorted(file.name for file in folder.glob("*.b2nd")) == ["case_1.b2nd", "case_1_seg.b2nd"]
    assert cases.load_case("case_1")[0].shape == (1, 8, 8, 8)


@pytest.mark.parametrize("required", [False, True])
def test_whole_cases_of_smore_are_taken(own, dataset, required):
    run = train_smore(own, dataset)
    source = choose(own, dataset, required=required)
    assert isinstance(source, SMORECases)
    assert source.run == run
    assert source.fingerprint() == {"smore_weights_sha256": hash_weights(network().state_dict())}
    cases = source.cases(CASES[1:])
    assert (cases.identifiers, cases.source_folder) == (CASES[1:], str(run.folder / STORE_NAME))
    assert not interpolated_folder(dataset.source_folder, FACTOR).exists()


def test_smore_of_the_same_length_comes_first(own, dataset):
    train_smore(own, dataset)
    assert choose(own, dataset).run.trainer == "SMORETrainer"
    train_smore(own, dataset, trainer="SMORETrainer_10epochs")
    assert choose(own, dataset).run.trainer == "SMORETrainer_10epochs"


def damage(run):
    (run.folder / STORE_NAME / "case_2_seg.b2nd").unlink()


def forget(run):
    (run.folder / f"{STORE_NAME}_cases" / "case_2.json").unlink()


def train_again(run):
    torch.save({"network_weights": network(seed=1).state_dict()}, run.final_checkpoint)


BROKEN = {damage: "case_2_seg.b2nd is missing", forget: "case was not written", train_again: "checkpoint was replaced"}


@pytest.mark.parametrize("how", BROKEN)
def test_cases_of_smore_that_cannot_be_used_are_named_and_splines_taken(own, dataset, how):
    run = train_smore(own, dataset)
    how(run)
    lines = []
    assert isinstance(choose(own, dataset, lines=lines), SplineCases)
    (line,) = lines
    assert re.fullmatch(
        rf"WARNING: SMORE's cases are not used: .*{BROKEN[how]}.*; run: {re.escape(run.command)} --val", line
    )


@pytest.mark.parametrize("how", BROKEN)
def test_where_smore_is_required_they_are_refused(own, dataset, how):
    run = train_smore(own, dataset)
    how(run)
    error = FileNotFoundError if how is forget else ValueError
    with pytest.raises(error, match=rf"{BROKEN[how]}.*; run: {re.escape(run.command)} --val"):
        choose(own, dataset, required=True)


def test_a_required_smore_that_is_missing_gives_the_command(own, dataset):
    command = re.escape(own.sibling("SMORETrainer").command)
    with pytest.raises(FileNotFoundError, match=rf"is missing: SMORE of this fold is not finished; run: {command}$"):
        choose(own, dataset, required=True)


def test_only_the_cases_that_are_needed_must_be_there(own, dataset):
    train_smore(own, dataset, CASES[:1])
    assert isinstance(choose(own, dataset, identifiers=CASES[:1]), SMORECases)
    assert isinstance(choose(own, dataset, lines=[]), SplineCases)


def test_smores_cases_are_checked_again_when_they_are_read(own, dataset):
    source = choose(own, dataset) if train_smore(own, dataset) else None
    damage(source.run)
    source.cases(CASES[:1])
    with pytest.raises(ValueError, match=r"case_2_seg.b2nd is missing"):
        source.cases(CASES)
    with pytest.raises(ValueError, match=r"case_2_seg.b2nd is missing"):
        source.check(CASES)


def test_cases_that_nothing_can_be_trained_on_are_refused(own, tmp_path):
    image = np.full((1, 4, 8, 8), np.nan, np.float32)
    broken = SimpleNamespace(
        source_folder=str(tmp_path), load_case=lambda _: (image, np.zeros((1, 4, 8, 8), np.int8), None, {})
    )
    with pytest.raises(ValueError, match="case_1"):
        choose(own, broken).check(CASES)
