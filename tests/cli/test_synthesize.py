"""Options of `rehrseg synthesize`; what it does is in tests/scenarios/test_guidance.py."""

import argparse

import pytest

from rehrseg_nnunet.cli import predict, synthesize


def options(module):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return {action.option_strings[-1]: action for action in parser._actions if action.dest != "help"}


def test_options_mean_what_they_mean_in_predict():
    own, others = options(synthesize), options(predict)
    assert set(own) <= set(others)
    for name, action in own.items():
        other = others[name]
        for attribute in ("default", "type", "choices", "nargs", "required", "const", "dest"):
            assert getattr(action, attribute) == getattr(other, attribute), name


def test_what_makes_segmentations_is_not_asked():
    left_out = set(options(predict)) - set(options(synthesize))
    assert left_out == {
        "--grid",
        "--disable_tta",
        "--hr_from",
        "--no_hr_head",
        "--save_probabilities",
        "-prev_stage_predictions",
        "--surfaces",
        "--ras",
        "--seg_nrrd",
    }


def test_a_model_must_be_named(tmp_path):
    parser = argparse.ArgumentParser()
    synthesize.add_arguments(parser)
    args = parser.parse_args(["-i", str(tmp_path), "-o", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="the model must be named, by -m FOLDER or -m ZIP, or by -d DATASET"):
        synthesize.run(args)
