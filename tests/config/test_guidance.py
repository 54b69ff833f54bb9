"""The guidance block: defaults by dimension, refusals with the key's name, no demand on the slices."""

import json
from importlib.resources import files

import pytest

from rehrseg_nnunet.config.guidance import FusionConfig, GuidanceConfig, load_config, parse_block


def configuration(spacing=(1.0, 1.0, 1.0), **more):
    return {"spacing": list(spacing), "batch_size": 2, **more}


@pytest.mark.parametrize(
    ("spacing", "double", "convolutions"),
    [((1.0, 1.0, 1.0), True, 1), ((4.0, 1.0, 1.0), True, 1), ((1.0, 1.0), False, 2)],
)
def test_what_is_not_given_comes_from_the_configuration(spacing, double, convolutions):
    config = load_config(configuration(spacing, batch_size=7))
    assert (config.features_double, config.convs_per_block, config.batch_size) == (double, convolutions, 7)
    rest = {"features_double", "convs_per_block", "batch_size"}
    expected = GuidanceConfig(fusion=FusionConfig(start="identity"))
    assert config.model_dump(exclude=rest) == expected.model_dump(exclude=rest)


@pytest.mark.parametrize(
    ("block", "start"),
    [
        ({}, "identity"),
        ({"from_baseline": False}, "paper"),
        ({"from_baseline": False, "fusion": {"start": "identity"}}, "identity"),
        ({"fusion": {"start": "paper"}}, "paper"),
    ],
)
def test_fusion_starts_at_random_where_there_is_no_baseline_to_keep(block, start):
    assert load_config(configuration(guidance=block)).fusion.start == start


def test_what_is_given_is_kept():
    block = {"features_double": False, "convs_per_block": 3, "batch_size": 1, "keeper": {"kernel": 3}}
    config = load_config(configuration(guidance=block, batch_size=7))
    assert (config.features_double, config.convs_per_block, config.batch_size) == (False, 3, 1)
    assert (config.keeper.kernel, config.keeper.epochs) == (3, 100)
    assert load_config(configuration(guidance=config.model_dump(mode="json"))) == config


def test_a_rehrseg_block_beside_it_changes_nothing():
    with_both = configuration((4.0, 1.0, 1.0), rehrseg={"factor": 4}, guidance={"base_features": 4})
    assert load_config(with_both) == load_config(configuration(guidance={"base_features": 4}))


def test_cascades_are_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match="guidance does not support cascades: the previous stage's segment"):
        load_config(configuration(previous_stage="3d_lowres"))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"base_feature": 8}, r"^guidance\.base_feature: unknown key$"),
        ({"base_features": 6}, r"^guidance\.base_features: .*multiple of 4, got 6$"),
        ({"keeper": {"kernel": 4}}, r"^guidance\.keeper: kernel must be odd, got 4$"),
        ({"teacher": {"noise_std": -1}}, r"^guidance\.teacher\.noise_std: .*greater than or equal to 0, got -1$"),
        ({"fusion": {"hidden": 0}}, r"^guidance\.fusion\.hidden: .*greater than 0, got 0$"),
        ({"fusion": {"stages": [1, 2, 1]}}, r"^guidance\.fusion: stages must differ, got \(1, 2, 1\)$"),
        ({"fusion": {"stages": []}}, r"^guidance\.fusion\.stages: .*at least 1 item"),
        ({"fusion": {"kind": "sum"}}, r"'adaptive', 'scalar' or 'decoder_only', got 'sum'$"),
        ({"channels": ["T1"]}, r"^guidance\.channels: .*got \['T1'\]$"),
        ([], r"^guidance: .*dictionary"),
    ],
)
def test_bad_keys_and_values_are_named(block, message):
    with pytest.raises(ValueError, match=message):
        parse_block(block)


def test_the_papers_preset_spells_out_every_key_that_no_dataset_decides():
    written = json.loads(files("rehrseg_nnunet.plans").joinpath("paper.json").read_text())["guidance"]
    dumped = GuidanceConfig().model_dump(mode="json", exclude={"features_double", "convs_per_block"})
    assert written.keys() == dumped.keys()
    for group in ("teacher", "keeper", "fusion"):
        assert written[group].keys() == dumped[group].keys()
    paper = parse_block(written)
    assert paper.base_features == 16
    assert (paper.fusion.hidden, paper.fusion.start, paper.checkpoint) == (1, "paper", "best")
    keeper = {"source_augmentation": "spatial", "residual": False, "kernel": 7}
    assert paper.keeper == GuidanceConfig().keeper.model_copy(update=keeper)
    assert paper.teacher == GuidanceConfig().teacher
