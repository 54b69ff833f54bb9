"""The page's first answers, as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rehrseg_nnunet.evaluation.summary import MEAN, mean_interval
from rehrseg_nnunet.report.material import Material
from rehrseg_nnunet.report.measures import POSSIBLE, SURE
from rehrseg_nnunet.report.results import MIN_CASES, CaseResult
from rehrseg_nnunet.report.training_log import TrainingLog

_CLEARLY_WORSE = 0.05  # Dice at the ends below that between them
_LIMITS = 1.96  # standard deviations that hold 95 % of normal differences


def answers(material: Material, cases: Sequence[CaseResult]) -> list[tuple[str, list[str]]]:
    """Questions and answers; those that cannot be answered say what is missing."""
    found: list[tuple[str, list[str]]] = []
    for title, summary in (("thin slices", material.main_summary), ("acquired slices", material.acquired_summary)):
        if summary is not None:
            where = title if material.acquired_summary is not None else "these cases"
            found.append((f"How good is it on {where}?", [comparison(summary, material.model)]))
    if cases:
        found.append(("Which case is worst, and why?", [worst(cases[0])]))
        found.append(("Is it worse at the ends of the stack?", [ends(cases, material)]))
        found.append(("How large are the structures, and how sure is that?", volumes(cases)))
        found.append(("Where is it unsure?", [unsure(cases)]))
    restored = [f"{title}, {report.answer}" for title, report in material.stage_1 if report.answer]
    if restored:
        found.append(("Are stage 1's thin slices better than interpolated ones?", restored))
    if material.trainings:
        found.append(("What did training do?", [training(*pair) for pair in material.trainings]))
    return found


def rounded(value: float, digits: int) -> float:
    """A number to be shown with so many digits; what rounds to zero has no sign.

    Example:
        >>> f"{rounded(-0.0001, 3):+.3f}"
        '+0.000'
    """
    return round(value, digits) + 0.0


def comparison(summary: Mapping[str, Any], model: str) -> str:
    """Mean Dice and HD95, and what changed against the baseline, with intervals."""
    scores = summary["methods"][model]["over_cases"][MEAN]
    dice, distance = scores["Dice"], scores["HD95"]
    text = f"Dice {dice['mean']:.3f}, HD95 {distance['mean']:.2f} mm (mean of {dice['n']} cases)."
    tests = {test["metric"]: test for test in summary["paired"] if test["name"] == model}
    if "Dice" not in tests:
        return text + _own_interval(summary, model)
    test = tests["Dice"]
    low, high = test["interval"]
    if test["n"] < MIN_CASES:
        change = f"{rounded(test['mean_difference'], 3):+.3f} Dice against {test['against']}"
        return f"{text} {change}; too few cases to say more."
    verdict = "Better than" if low > 0 else "Worse than" if high < 0 else "No clear difference to"
    return (
        f"{text} {verdict} {test['against']}: {rounded(test['mean_difference'], 3):+.3f} Dice "
        f"(95 % interval {rounded(low, 3):+.3f} to {rounded(high, 3):+.3f}, {test['n']} cases), "
        f"{rounded(tests['HD95']['mean_difference'], 2):+.2f} mm HD95."
    )


def _own_interval(summary: Mapping[str, Any], model: str) -> str:
    cases = [case for fold in summary["methods"][model]["folds"].values() for case in fold["metric_per_case"]]
    rows = [[values["Dice"] for values in case["metrics"].values()] for case in cases]
    means = np.array([np.mean(defined) for row in rows if (defined := [value for value in row if value == value])])
    low, high = mean_interval(means)
    return "" if len(means) < MIN_CASES else f" 95 % interval of the mean Dice: {low:.3f} to {high:.3f}."


def worst(case: CaseResult) -> str:
    """The first case, and what is wrong with it."""
    score = case.mean("Dice")
    if math.isnan(score):
        reasons = [flag.text for flag in case.flags]
        if not reasons and math.isnan(case.unsure_share):
            return "No case stands out. Without reference only flags can tell, and there is none."
        return f"{case.name}: {'; '.join(reasons) or f'most unsure, {100 * case.unsure_share:.0f} % of its volume'}."
    return f"{case.name}, Dice {score:.3f}: {why(case)}."


def why(case: CaseResult) -> str:
    """What is wrong with a case, the largest part first; empty without reference."""
    if case.errors_ml is None:
        return ""
    names = ("missed", "too much", "given to another structure")
    parts = sorted(zip(case.errors_ml, names, strict=True), reverse=True)
    reasons = [f"{amount:.2f} ml {name}" for amount, name in parts if amount > 0][:2]
    share = math.nan if case.stack is None else case.stack.share_at_ends
    if not math.isnan(share):
        reasons.append(f"{100 * share:.0f} % of the wrong voxels in the first and last fifth of the stack")
    reasons += [flag.text for flag in case.flags if flag.word in ("empty", "made up", "pieces")]
    return "; ".join(reasons) or "nothing is wrong"


def ends(cases: Sequence[CaseResult], material: Material) -> str:
    """Dice in the first and last fifth of the stack, and between."""
    ours = _ends_and_middle([case.stack.dice for case in cases if case.stack is not None])
    if ours is None:
        return "Not known: that takes a reference."
    verdict = "Yes" if ours[1] - ours[0] > _CLEARLY_WORSE else "Hardly"
    text = f"{verdict}: Dice {ours[0]:.3f} in the first and last fifth, {ours[1]:.3f} between."
    stacks = [case.baseline_stack for case in cases]
    theirs = _ends_and_middle([stack.dice for stack in stacks if stack is not None])
    if theirs is None:
        return text
    return f"{text} {material.baseline}: {theirs[0]:.3f} and {theirs[1]:.3f}."


def _ends_and_middle(rows: Sequence[np.ndarray]) -> tuple[float, float] | None:
    values = np.array(rows).reshape(-1, 5)
    parts = [values[:, [0, -1]], values[:, 1:-1]]
    if any(np.isnan(part).all() for part in parts) or not len(values):
        return None
    at_ends, between = (float(np.nanmean(part)) for part in parts)
    return at_ends, between


def volumes(cases: Sequence[CaseResult]) -> list[str]:
    """Volumes of every structure with limits of agreement, or what is sure and what is possible."""
    return [_volume(rows) for rows in zip(*(case.structures for case in cases), strict=True)]


def _volume(rows: Sequence[Any]) -> str:
    found = np.array([row.volume_ml for row in rows])
    text = f"{rows[0].name}: median {np.median(found):.2f} ml ({found.min():.2f} to {found.max():.2f})"
    limits = limits_of_agreement([(row.reference_ml, row.volume_ml) for row in rows])
    if limits is not None:
        mean, low, high = (rounded(value, 0) for value in limits)
        return f"{text}, {mean:+.0f} % against the reference, 95 of 100 cases within {low:+.0f} % to {high:+.0f} %."
    pairs = [(row.sure_ml, row.possible_ml) for row in rows if row.sure_ml is not None]
    if pairs:
        sure, possible = np.median(np.array(pairs), axis=0)
        return (
            f"{text}; {sure:.2f} ml of it is sure (p ≥ {SURE}), {possible:.2f} ml possible (p ≥ {POSSIBLE}; medians)."
        )
    return f"{text}; how sure is not known without probabilities."


def limits_of_agreement(pairs: Sequence[tuple[float | None, float]]) -> tuple[float, float, float] | None:
    """Mean difference in percent of pairs (reference, predicted), and its limits of agreement (Bland and Altman).

    None for fewer than `MIN_CASES` pairs.

    Example:
        >>> [round(value, 2) for value in limits_of_agreement([(10, 9), (10, 11)] * 3)]
        [0.0, -21.47, 21.47]
    """
    percent = np.array([100 * (found / true - 1) for true, found in pairs if true])
    if len(percent) < MIN_CASES:
        return None
    mean, reach = float(percent.mean()), _LIMITS * float(percent.std(ddof=1))
    return mean, mean - reach, mean + reach


def unsure(cases: Sequence[CaseResult]) -> str:
    """The case with the largest share of unsure voxels."""
    known = [case for case in cases if not math.isnan(case.unsure_share)]
    if not known:
        return "Not known: probabilities were not written (train with --npz, predict with --save_probabilities)."
    most = max(known, key=lambda case: case.unsure_share)
    usual = float(np.median([case.unsure_share for case in known]))
    return (
        f"Most in {most.name}: voxels with a probability of {POSSIBLE} to {SURE} make up "
        f"{100 * most.unsure_share:.0f} % of its volume (median of all cases {100 * usual:.0f} %). Pictures show where."
    )


def training(title: str, log: TrainingLog) -> str:
    """Epochs, pseudo Dice and where the validation loss was lowest."""
    text = f"{title}: {log.number_of_epochs} epochs, {log.duration}"
    epochs, dice = log.series("pseudo Dice")
    if dice:
        best = int(np.argmax(dice))
        text += f", pseudo Dice {dice[0]:.3f} to {dice[-1]:.3f} (best {dice[best]:.3f} in epoch {epochs[best]})"
    epochs, losses = log.series("val loss")
    if losses:
        lowest = epochs[int(np.argmin(losses))]
        text += f", lowest validation loss in epoch {lowest} of 0 to {epochs[-1]}"
    return f"{text}."
