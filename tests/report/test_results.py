"""Which case is worst, and what is said of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rehrseg_nnunet.report.cases import CaseFiles, GridFiles
from rehrseg_nnunet.report.glance import ends, limits_of_agreement, why, worst
from rehrseg_nnunet.report.measures import StackOverlap, StructureMeasures
from rehrseg_nnunet.report.results import CaseResult, own_flags, ranked, scores_of


def structure(name="a", volume_ml=1.0, **changes):
    empty = {"reference_ml": None, "sure_ml": None, "possible_ml": None, "pieces": 1, "reference_pieces": None}
    return StructureMeasures(**{"name": name, "volume_ml": volume_ml, "cut": (), **empty, **changes})


def case(name, dice=None, *, structures=None, **changes):
    rows = {} if dice is None else {"a": {"Dice": dice, "HD95": 1.0, "NSD": 1.0}}
    result = CaseResult(
        CaseFiles(name, GridFiles(f"{name}.nii.gz")),
        0,
        structures or [structure()],
        rows,
        {},
        {},
        None,
        None,
        None,
        None,
    )
    return replace(result, **changes)


def words(flags):
    return [flag.word for flag in flags]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (structure(), []),
        (structure(volume_ml=0), ["empty"]),
        (structure(volume_ml=0, reference_ml=2.0), ["empty"]),
        (structure(volume_ml=0, reference_ml=0.0), []),
        (structure(reference_ml=0.0), ["made up"]),
        (structure(cut=("first slice",)), ["cut"]),
        (structure(pieces=3, reference_pieces=2), ["pieces"]),
        (structure(pieces=3, reference_pieces=3), []),
        (structure(pieces=3), []),
    ],
)
def test_flags_of_a_structure(found, expected):
    assert words(own_flags([found], None)) == expected


def test_a_case_that_disagrees_with_its_acquired_slices():
    assert words(own_flags([structure()], 0.79)) == ["disagrees"]
    assert own_flags([structure()], 0.81) == own_flags([structure()], math.nan) == []


def test_the_lowest_dice_comes_first_and_cases_without_come_last():
    cases = [case("c", 0.9), case("d", math.nan), case("a", 0.9), case("b", 0.2)]
    assert [found.name for found in ranked(cases)] == ["b", "a", "c", "d"]


def test_without_reference_flags_decide_and_then_what_is_unsure():
    unsure = [structure(sure_ml=0.9, possible_ml=1.2)]
    cases = [
        case("a"),
        case("b", structures=unsure),
        case("c", flags=tuple(own_flags([structure(volume_ml=0)], None))),
    ]
    assert [found.name for found in ranked(cases)] == ["c", "b", "a"]
    assert cases[1].unsure_share == pytest.approx(0.3)
    assert math.isnan(cases[0].unsure_share)


def test_a_volume_far_from_the_others_is_flagged():
    usual = [case(f"{n}", structures=[structure(volume_ml=1 + 0.02 * n)]) for n in range(7)]
    assert not any(found.flags for found in ranked(usual))
    for volume in (0.5, 2.0):
        odd = case("odd", structures=[structure(volume_ml=volume)])
        assert {found.name: words(found.flags) for found in ranked([*usual, odd])}["odd"] == ["volume"]
        assert not any(found.flags for found in ranked([*usual[:4], odd]))  # too few to know what is usual
    nothing = case("none", structures=[structure(volume_ml=0)])
    assert not any(found.flags for found in ranked([*usual, nothing]))


def test_more_pieces_than_usual_are_flagged_without_reference():
    usual = [case(f"{n}") for n in range(6)]
    odd = case("odd", structures=[structure(pieces=2)])
    assert words(ranked([*usual, odd])[0].flags) == ["pieces"]
    known = case("known", structures=[structure(pieces=2, reference_pieces=2, reference_ml=1.0)])
    assert not any(found.flags for found in ranked([*usual, known]))


def stack(dice, wrong=(0, 0, 0, 0, 0)):
    return StackOverlap(np.array(dice) * 10.0, np.full(5, 10.0), np.array(wrong, float))


def test_why_names_the_larger_mistake_first_and_where_it_is():
    bad = case("bad", 0.5, errors_ml=(0.1, 2.0, 0.0), stack=stack([0.5] * 5, (3, 0, 0, 0, 1)))
    assert (
        why(bad)
        == "2.00 ml too much; 0.10 ml missed; 100 % of the wrong voxels in the first and last fifth of the stack"
    )
    assert worst(bad) == f"bad, Dice 0.500: {why(bad)}."
    assert why(case("good", 1.0, errors_ml=(0, 0, 0), stack=stack([1] * 5))) == "nothing is wrong"
    empty = replace(bad, flags=tuple(own_flags([structure(volume_ml=0)], None)))
    assert why(empty).endswith("a has no voxel")


def test_without_reference_the_first_flag_or_the_unsure_voxels_are_named():
    assert worst(case("a")).startswith("No case stands out")
    assert (
        worst(case("a", structures=[structure(sure_ml=0.9, possible_ml=1.2)])) == "a: most unsure, 30 % of its volume."
    )


@pytest.mark.parametrize(("dice", "verdict"), [([0.5, 0.9, 0.9, 0.9, 0.7], "Yes"), ([0.9] * 5, "Hardly")])
def test_ends_of_the_stack(dice, verdict, folders):
    del folders
    from rehrseg_nnunet.report.material import Material

    material = Material("", {}, {}, None, (), baseline="other")
    text = ends([case("a", stack=stack(dice), baseline_stack=stack([0.4] * 5))], material)
    mean = (dice[0] + dice[-1]) / 2
    assert text == f"{verdict}: Dice {mean:.3f} in the first and last fifth, 0.900 between. other: 0.400 and 0.400."
    assert ends([case("a")], material) == "Not known: that takes a reference."


def test_limits_of_agreement_are_those_of_bland_and_altman():
    true, found = np.arange(1.0, 9), np.arange(1.0, 9) * np.linspace(0.8, 1.1, 8)
    percent = 100 * (found - true) / true
    expected = percent.mean(), *(percent.mean() + side * 1.96 * np.std(percent, ddof=1) for side in (-1, 1))
    assert limits_of_agreement(list(zip(true, found, strict=True))) == pytest.approx(expected)
    assert limits_of_agreement([(None, 1.0)] * 9) is None
    assert limits_of_agreement([(1.0, 1.0)] * 5) is None


def test_scores_are_found_by_case_and_structure():
    row = {"Dice": 0.5}
    summary = {
        "settings": {"labels": {"1": "a"}},
        "methods": {"m": {"folds": {"0": {"metric_per_case": [{"case": "x", "metrics": {"1": row}}]}}}},
    }
    assert scores_of(summary, "m") == {"x": {"a": row}}
    assert scores_of(summary, "other") == scores_of(None, "m") == {}
