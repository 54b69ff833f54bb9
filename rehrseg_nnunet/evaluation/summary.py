"""Averages over cases and folds, and paired tests.

*Convention* nan means "not defined" and is left out of every average; ``n`` counts what is left. A case that several
folds predict counts once, with its mean over those folds. ``"mean"`` is the mean over a case's labels (without
background) or channels, and then over cases; it equals nnU-Net's ``foreground_mean`` unless a label is undefined in
some case. Standard deviations are of samples (n - 1), nan for n = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

SEGMENTATION_METRICS = ("Dice", "HD95", "NSD", "ASSD", "VolumeBias")
IMAGE_METRICS = ("PSNR", "SSIM")
MEAN = "mean"
MISSED = "missed or made up"  # title of the count of structures that only one of reference and prediction has
CONFIDENCE = 0.95
_MIN_PAIRS = 6


def statistic(values: Iterable[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1) and number n of the values that are not nan.

    Example:
        >>> statistic([0.0, 1.0, 2.0, math.nan])
        {'mean': 1.0, 'std': 1.0, 'n': 3}
    """
    array = np.asarray(list(values), dtype=np.float64)
    array = array[~np.isnan(array)]
    # Equal images have an infinite PSNR; the spread around an infinite mean is nan.
    with np.errstate(invalid="ignore"):
        deviation = float(array.std(ddof=1)) if array.size > 1 else math.nan
    return {"mean": float(_nan_mean(array, axis=0)), "std": deviation, "n": int(array.size)}


def case_scores(cases: Iterable[Mapping[str, Any]], *, labels: Sequence[str], metric: str) -> dict[str, np.ndarray]:
    """One value for each label, shape (labels,), of every case; nan where there is none.

    Args:
        cases: results with ``case`` and ``metrics[label][metric]``; results of one case are averaged.
        labels: keys of the labels.
        metric: name of the metric.
    """
    collected: dict[str, list[list[float]]] = {}
    for result in cases:
        row = [result["metrics"].get(label, {}).get(metric, math.nan) for label in labels]
        collected.setdefault(result["case"], []).append(row)
    return {case: _nan_mean(np.array(rows), axis=0) for case, rows in collected.items()}


def statistics(
    cases: Sequence[Mapping[str, Any]], *, labels: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Statistic over cases by label (and ``"mean"``) and metric."""
    result: dict[str, dict[str, dict[str, float]]] = {label: {} for label in (MEAN, *labels)}
    for metric in metrics:
        scores = np.array(list(case_scores(cases, labels=labels, metric=metric).values())).reshape(-1, len(labels))
        result[MEAN][metric] = statistic(_nan_mean(scores, axis=1))
        for column, label in enumerate(labels):
            result[label][metric] = statistic(scores[:, column])
    return result


def method_summary(
    folds: Mapping[str, list[dict[str, Any]]],
    folders: Mapping[str, Path],
    *,
    labels: Sequence[str],
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Statistics of one method.

    Returns:
        ``over_cases`` (cases of all folds), ``over_folds`` (of the folds' means), ``one_empty`` (number of results by
        label, of a case and fold, in which exactly one of reference and prediction is empty: failures, which have the
        worst value of every metric), and for each of ``folds`` its folder, statistics and single cases.
    """
    pooled = [case for cases in folds.values() for case in cases]
    fold_statistics = {fold: statistics(cases, labels=labels, metrics=metrics) for fold, cases in folds.items()}
    summary: dict[str, Any] = {
        "over_cases": statistics(pooled, labels=labels, metrics=metrics),
        "over_folds": {
            label: {
                metric: statistic(fold[label][metric]["mean"] for fold in fold_statistics.values())
                for metric in metrics
            }
            for label in (MEAN, *labels)
        },
        "folds": {
            fold: {"folder": str(folders[fold]), "over_cases": fold_statistics[fold], "metric_per_case": cases}
            for fold, cases in folds.items()
        },
    }
    if "HD95" in metrics:
        summary["one_empty"] = {label: sum(_one_empty(case["metrics"][label]) for case in pooled) for label in labels}
    return summary


def paired_test(
    folds: Mapping[str, list[dict[str, Any]]],
    other_folds: Mapping[str, list[dict[str, Any]]],
    *,
    labels: Sequence[str],
    metric: str,
) -> dict[str, Any]:
    """Two-sided Wilcoxon signed-rank test of the cases' means over labels, method minus other method.

    The cases of all folds are pooled; cases that only one method has are left out. A label counts in a case (and fold,
    if the methods have the same folds) only where both methods have a value: where both masks of one are empty there is
    none.

    Returns:
        ``n`` pairs, ``mean_difference``, its bootstrap ``interval`` (95 %, low and high, over the pairs), ``p`` (nan
        without pairs, 1 without differences) and a ``note`` on what limits the test, or an empty one.
    """
    if folds.keys() != other_folds.keys():
        folds, other_folds = ({"": [case for cases in m.values() for case in cases]} for m in (folds, other_folds))
    pairs: dict[str, list[np.ndarray]] = {}
    for fold in folds:
        first, second = (case_scores(m[fold], labels=labels, metric=metric) for m in (folds, other_folds))
        for case in first.keys() & second.keys():
            pair = np.stack([first[case], second[case]])
            pair[:, np.isnan(pair).any(axis=0)] = np.nan
            pairs.setdefault(case, []).append(pair)
    means = [_nan_mean(_nan_mean(np.stack(pairs[case]), axis=0), axis=1) for case in sorted(pairs)]
    return wilcoxon(*np.reshape(means, (-1, 2)).T)


def wilcoxon(values: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Two-sided Wilcoxon signed-rank test (``scipy.stats.wilcoxon``) of paired values; pairs with a nan are left out.

    Returns:
        See :func:`paired_test`.
    """
    both = ~(np.isnan(values) | np.isnan(others))
    values, others = values[both], others[both]
    # Two infinite PSNRs are equal, but their difference would be nan.
    different = values != others
    differences = np.zeros(values.shape)
    differences[different] = values[different] - others[different]
    count = int(differences.size)
    result = {
        "n": count,
        "mean_difference": float(_nan_mean(differences, axis=0)),
        "interval": mean_interval(differences),
        "p": math.nan,
        "note": "",
    }
    if count == 0:
        return result | {"note": "no common cases"}
    if not different.any():
        return result | {"p": 1.0, "note": "all differences are zero"}
    if different.sum() < _MIN_PAIRS:
        result["note"] = f"fewer than {_MIN_PAIRS} differences: p cannot be below 0.05"
    _, p = np.asarray(stats.wilcoxon(differences))
    return result | {"p": float(p)}


def mean_interval(values: np.ndarray) -> list[float]:
    """Bootstrap interval (95 %, bias-corrected, ``scipy.stats.bootstrap``) of a mean: low and high, always the same.

    Example:
        >>> mean_interval(np.array([1.0, 1.0]))
        [1.0, 1.0]
    """
    if values.size < 2 or not np.isfinite(values).all():
        return [math.nan, math.nan]
    if np.ptp(values) == 0:
        return [float(values[0])] * 2
    # declared as `rng`, its name from SciPy 1.15 on, which knows both
    seed: Any = {"random_state": np.random.default_rng(0)}
    interval = stats.bootstrap((np.sort(values),), np.mean, confidence_level=CONFIDENCE, **seed)
    return [float(bound) for bound in interval.confidence_interval]


def corrected_tests(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tests of several methods in one metric, with ``p_holm`` for as many comparisons; see `holm`."""
    adjusted = holm([test["p"] for test in tests.values()])
    return {name: {**test, "p_holm": p} for (name, test), p in zip(tests.items(), adjusted, strict=True)}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method; nan stays nan and does not count.

    Example:
        >>> holm([0.03, 0.01, 0.5])
        [0.06, 0.03, 0.5]
    """
    result = np.full(len(p_values), math.nan)
    ascending = [index for index in np.argsort(p_values) if not math.isnan(p_values[index])]
    highest = 0.0
    for rank, index in enumerate(ascending):
        highest = max(highest, min(1.0, (len(ascending) - rank) * p_values[index]))
        result[index] = highest
    return result.tolist()


def _one_empty(metrics: Mapping[str, Any]) -> bool:
    return (metrics["n_ref"] == 0) != (metrics["n_pred"] == 0)


def _nan_mean(values: np.ndarray, *, axis: int) -> np.ndarray:
    # numpy's nanmean warns where there is nothing to average; here that is an ordinary nan.
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=axis) / np.where(count > 0, count, np.nan)
