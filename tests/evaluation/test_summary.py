import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rehrseg_nnunet.evaluation.summary import (
    case_scores,
    holm,
    mean_interval,
    method_summary,
    paired_test,
    statistic,
    statistics,
    wilcoxon,
)

NAN = math.nan


def result(case, dice, hd95=None, n_ref=5, n_pred=5):
    hd95 = hd95 or dict.fromkeys(dice, 1.0)
    return {
        "case": case,
        "metrics": {
            label: {"Dice": value, "HD95": hd95[label], "n_ref": n_ref, "n_pred": n_pred}
            for label, value in dice.items()
        },
    }


def test_statistic_leaves_nan_out():
    assert statistic([1.0, NAN, 4.0]) == {"mean": 2.5, "std": pytest.approx(np.sqrt(4.5)), "n": 2}
    single = statistic([NAN, 2.0])
    assert (single["mean"], single["n"]) == (2.0, 1)
    assert math.isnan(single["std"])
    nothing = statistic([NAN])
    assert math.isnan(nothing["mean"])
    assert nothing["n"] == 0
    assert statistic([math.inf, 3.0])["mean"] == math.inf


def test_the_mean_is_over_labels_of_a_case_then_over_cases():
    cases = [result("a", {"1": 0.5, "2": NAN}), result("b", {"1": 0.9, "2": 0.7}), result("c", {"1": NAN, "2": NAN})]
    table = statistics(cases, labels=["1", "2"], metrics=["Dice"])
    assert table["1"]["Dice"]["mean"] == pytest.approx(0.7)
    assert table["2"]["Dice"] == {"mean": pytest.approx(0.7), "std": pytest.approx(NAN, nan_ok=True), "n": 1}
    assert table["mean"]["Dice"]["mean"] == pytest.approx((0.5 + 0.8) / 2)
    assert table["mean"]["Dice"]["n"] == 2


def test_a_case_of_several_folds_counts_once():
    cases = [result("a", {"1": 0.2}), result("a", {"1": 0.6}), result("b", {"1": 1.0})]
    assert case_scores(cases, labels=["1"], metric="Dice") == {"a": pytest.approx(0.4), "b": pytest.approx(1.0)}
    assert statistics(cases, labels=["1"], metrics=["Dice"])["1"]["Dice"]["n"] == 2


def test_deviation_over_folds_is_that_of_their_means():
    folds = {"0": [result("a", {"1": 0.2}), result("b", {"1": 0.4})], "1": [result("c", {"1": 0.9})]}
    folders = {"0": Path("x/0"), "1": Path("x/1")}
    summary = method_summary(folds, folders, labels=["1"], metrics=["Dice", "HD95"])
    assert summary["over_folds"]["1"]["Dice"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(np.std([0.3, 0.9], ddof=1)),
        "n": 2,
    }
    assert summary["over_cases"]["1"]["Dice"]["mean"] == pytest.approx(0.5)
    assert summary["folds"]["1"]["folder"] == str(Path("x/1"))
    assert summary["folds"]["0"]["over_cases"]["mean"]["Dice"]["mean"] == pytest.approx(0.3)


def test_a_structure_that_one_run_missed_counts_in_that_pair_of_runs():
    missed = {"0": [result("a", {"1": 0.0}, {"1": 50.0})], "1": [result("a", {"1": 0.8}, {"1": 2.0})]}
    other = {"0": [result("a", {"1": 0.7}, {"1": 20.0})], "1": [result("a", {"1": 0.8}, {"1": 2.0})]}
    for first, second, sign in ((missed, other, 1), (other, missed, -1)):
        assert paired_test(first, second, labels=["1"], metric="HD95")["mean_difference"] == sign * 15
    assert paired_test(missed, other, labels=["1"], metric="Dice")["mean_difference"] == pytest.approx(-0.35)


def test_a_label_that_is_undefined_in_one_run_is_left_out_of_that_pair_of_runs():
    """Not of the case: the mean over a method's other runs would be compared with the mean over all of the other's."""
    absent = {"0": [result("a", {"1": NAN}, {"1": NAN})], "1": [result("a", {"1": 0.8}, {"1": 2.0})]}
    other = {"0": [result("a", {"1": 0.0}, {"1": 50.0})], "1": [result("a", {"1": 0.8}, {"1": 2.0})]}
    for metric in ("Dice", "HD95"):
        assert paired_test(absent, other, labels=["1"], metric=metric)["mean_difference"] == 0


def test_cases_with_one_empty_mask_are_counted():
    cases = [
        result("a", {"1": 0.0}, n_ref=0),
        result("b", {"1": 0.0}, n_pred=0),
        result("c", {"1": NAN}, n_ref=0, n_pred=0),
        result("d", {"1": 0.5}),
    ]
    summary = method_summary({"0": cases}, {"0": Path("x")}, labels=["1"], metrics=["Dice", "HD95"])
    assert summary["one_empty"] == {"1": 2}


def test_paired_test_equals_scipy_on_pooled_common_cases():
    rng = np.random.default_rng(0)
    first, second = rng.random(12), rng.random(12)
    folds = {
        "0": [result(f"c{i}", {"1": first[i]}) for i in range(0, 12, 2)],
        "1": [result(f"c{i}", {"1": first[i]}) for i in range(1, 12, 2)],
    }
    others = {"0": [result(f"c{i}", {"1": second[i]}) for i in reversed(range(12))] + [result("extra", {"1": 1.0})]}
    test = paired_test(folds, others, labels=["1"], metric="Dice")
    assert test["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert test["n"] == 12
    assert test["mean_difference"] == pytest.approx((first - second).mean())
    assert test["note"] == ""


def test_wilcoxon_equals_enumeration_of_all_signs():
    differences = np.array([0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.75])
    ranks = stats.rankdata(np.abs(differences))
    observed = abs(ranks @ np.sign(differences))
    sums = [abs(ranks @ signs) for signs in itertools.product((-1, 1), repeat=7)]
    assert wilcoxon(differences + 1, np.ones(7))["p"] == pytest.approx(np.mean(np.array(sums) >= observed))


def test_wilcoxon_without_differences_or_pairs():
    same = wilcoxon(np.array([0.5, 0.7, math.inf]), np.array([0.5, 0.7, math.inf]))
    expected = {"n": 3, "mean_difference": 0.0, "interval": [0.0, 0.0], "p": 1.0, "note": "all differences are zero"}
    assert same == expected
    nothing = wilcoxon(np.array([NAN, 0.2]), np.array([0.5, NAN]))
    assert nothing["n"] == 0
    assert math.isnan(nothing["p"])
    assert nothing["note"] == "no common cases"


def test_few_pairs_are_noted():
    five = wilcoxon(np.arange(1.0, 6), np.zeros(5))
    assert five["p"] == pytest.approx(2 / 2**5)
    assert "cannot be below 0.05" in five["note"]
    assert wilcoxon(np.arange(1.0, 7), np.zeros(6))["note"] == ""


def test_hd95_is_paired_only_where_both_methods_have_a_distance():
    good = {"0": [result("a", {"1": 1, "2": 1}, {"1": 2.0, "2": 10.0})]}
    misses = {"0": [result("a", {"1": 1, "2": 0}, {"1": 2.5, "2": NAN})]}
    test = paired_test(misses, good, labels=["1", "2"], metric="HD95")
    # Without pairing label by label, the method that misses label 2 would look 3.5 mm better.
    assert test["mean_difference"] == pytest.approx(0.5)


def naive_holm(p_values):
    """Of ordered p-values the k-th is taken times the number of those from it on; none below one before it."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    result = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        candidates = [min(1, (len(order) - k) * p_values[order[k]]) for k in range(rank + 1)]
        result[index] = max(candidates)
    return result


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    values = np.random.default_rng(2).random(9).tolist()
    assert holm(values) == pytest.approx(naive_holm(values))
    with_nan = holm([0.02, NAN, 0.5])
    assert with_nan[::2] == [0.04, 0.5]
    assert math.isnan(with_nan[1])


def test_intervals_of_means():
    values = np.random.default_rng(4).normal(3, 2, size=200)
    low, high = mean_interval(values)
    error = values.std(ddof=1) / np.sqrt(200)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert mean_interval(values) == [low, high]  # the same numbers in every table
    assert mean_interval(-values) == pytest.approx([-high, -low], abs=0.1 * error)
    assert all(math.isnan(bound) for few in ([], [1.0], [1.0, math.inf]) for bound in mean_interval(np.array(few)))


def test_paired_tests_have_an_interval_of_the_difference():
    rng = np.random.default_rng(0)
    first, second = rng.random(20), rng.random(20)
    folds = [{"0": [result(f"c{i}", {"1": value}) for i, value in enumerate(values)]} for values in (first, second)]
    test = paired_test(*folds, labels=["1"], metric="Dice")
    assert test["interval"] == mean_interval(first - second)
    assert test["interval"][0] < test["mean_difference"] < test["interval"][1]
