"""What is compared: one `Row` per training, `TABLES` of rows, numbered as the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Changes = Mapping[str, Mapping[str, Any]]
Data = Literal["thick", "interpolated", "interpolated_true_labels", "interpolated_sparse", "true_hr", "pairs"]

# Plans beside the preset's: what each has in its `rehrseg` block instead, by group of settings.
PLANS: dict[str, Changes] = {
    "": {},
    "smoreImage": {"self_sr": {"export": {"image": "smore"}}},
    "smore": {},  # stage 1 finds SMORE's cases by its plans' name: here and under no other
    "scratch": {},  # the baseline likewise: there is none here
    "direct": {"self_sr": {"image_mode": "direct"}},
    "directLabels": {"self_sr": {"label_mode": "direct"}},
    "taught": {},  # stage 2 on a stage 1 of another trainer, beside the plans' own
    "eq11": {"segmentation": {"lr_dice_weight": 0, "true_lr_probability": 0}},
    "centred": {"segmentation": {"centre_features": True}},
    "centredLambda0_1": {"segmentation": {"centre_features": True, "distillation_weight": 0.1}},
    "noLRDice": {"segmentation": {"lr_dice_weight": 0}},
    "noTrueLR": {"segmentation": {"true_lr_probability": 0}},
    "directHead": {"segmentation": {"hr_head": {"label_mode": "direct"}}},
    "exact": {"segmentation": {"exact_pair_probability": 0.25}},
    "thin": {"segmentation": {"input": "thin"}},
    "thinSmooth": {"segmentation": {"input": "thin", "interpolation": "smooth"}},
    "thinTrueLR": {"segmentation": {"input": "thin", "true_lr_probability": 1.0}},
    "thinExact": {"segmentation": {"input": "thin", "exact_pair_probability": 0.25}},
    "thinAlone": {"segmentation": {"input": "thin", "distillation_weight": 0}},
    "thinEqualLosses": {"segmentation": {"input": "thin", "lr_weight": 1}},
    "thinWeighted": {"segmentation": {"input": "thin", "hr_uncertainty_weighting": True}},
    "interpolatingHead": {"segmentation": {"hr_head": {"label_mode": "direct", "upsampling": "interpolate"}}},
    "thinGuided": {"segmentation": {"input": "thin"}},
}
GUIDED_PLANS = ("thinGuided",)  # with the preset's `guidance` block besides


@dataclass(frozen=True)
class Row:
    """One training per fold and seed, by nnU-Net's own command.

    Attributes:
        key: name of its files.
        title: as printed.
        trainer: class name without a length.
        data: dataset that it is trained on, see `datasets.write_thin_dataset`.
        start: "none": the baseline itself. "baseline": goes on from its checkpoint for stage 2's epochs. "scratch":
            for the epochs of both together. "own": a restoring network, trained for as long as its settings say.
        after: keys of rows that must be trained before.
        plans: key of `PLANS`.
        stage_1: key of the row whose pseudo-HR cases and teacher it takes, if that has other plans.
        keeper: key of the row that guides it, if any.
        hr: how it gets to HR: by a head of its own, by upsampling what it says at LR in every way, or as its data are.
            `rehrseg predict` adds a way to the upsampled ones, on the test set.
    """

    key: str
    title: str
    trainer: str
    data: Data = "thick"
    start: Literal["none", "baseline", "scratch", "own"] = "baseline"
    after: Sequence[str] = ()
    plans: str = ""
    stage_1: str = ""
    keeper: str = ""
    hr: Literal["head", "upsampled", "data"] = "head"

    @property
    def segments(self) -> bool:
        """Whether it is a segmentation and not a network of images (stage 1, SMORE, teacher and keeper)."""
        return self.start != "own"

    @property
    def has_settings(self) -> bool:
        """Whether its training depends on the settings of this package, by more than a learning rate."""
        return self.trainer not in ("SafeTrainer", "ContinuedBaselineTrainer")

    @property
    def before(self) -> list[str]:
        """Keys of the rows that it builds on itself."""
        start = ["baseline"] if self.start == "baseline" else []
        return [*start, *self.after, *filter(None, [self.stage_1, self.keeper])]


def _variant(key: str, title: str, suffix: str, *, after: Sequence[str] = ("self_sr",), plans: str = "") -> Row:
    return Row(key, title, f"REHRSegTrainer_{suffix}", after=after, plans=plans)


def _setting(plans: str, title: str) -> Row:
    """Stage 2 under other plans, on stage 1 as it is."""
    return Row(plans, title, "REHRSegTrainer", plans=plans, stage_1="self_sr")


def _thin(key: str, title: str, suffix: str = "", *, plans: str = "thin", stage_1: str = "self_sr") -> Row:
    """Quality mode, for as many steps as nnU-Net on interpolated volumes: no baseline of thick slices fits it."""
    trainer = f"REHRSegTrainer_{suffix}" if suffix else "REHRSegTrainer"
    return Row(key, f"thin input, {title}", trainer, start="scratch", plans=plans, stage_1=stage_1)


def _stage_1_setting(plans: str, title: str, *, smore: bool = False) -> tuple[Row, ...]:
    """Stage 1 under other plans, with or without SMORE, and stage 2 on it."""
    first = [Row(f"smore_{plans}", f"SMORE for {title}", "SMORETrainer", start="own", plans=plans)] if smore else []
    after = tuple(row.key for row in first)
    stage_1 = Row(f"self_sr_{plans}", f"self-SR, {title}", "SelfSRTrainer", start="own", after=after, plans=plans)
    name = f"REHRSeg on self-SR, {title}"
    return *first, stage_1, Row(f"rehrseg_{plans}", name, "REHRSegTrainer", after=(stage_1.key,), plans=plans)


ROWS = {
    row.key: row
    for row in (
        Row("baseline", "nnU-Net", "SafeTrainer", start="none", hr="upsampled"),
        Row("continued", "nnU-Net continued", "ContinuedBaselineTrainer", hr="upsampled"),
        Row("self_sr", "self-SR", "SelfSRTrainer", start="own"),
        Row("rehrseg", "REHRSeg", "REHRSegTrainer", after=("self_sr",)),
        Row("interpolated", "nnU-Net on interpolated", "SafeTrainer", "interpolated", "scratch", hr="data"),
        Row(
            "interpolated_sparse",
            "nnU-Net on interpolated, only the acquired slices labelled",
            "SafeTrainer",
            "interpolated_sparse",
            "scratch",
            hr="data",
        ),
        Row(
            "interpolated_true_labels",
            "nnU-Net on interpolated with the true HR labels (the room of thin input)",
            "SafeTrainer",
            "interpolated_true_labels",
            "scratch",
            hr="data",
        ),
        _variant(
            "thick_true_labels",
            "HR head on interpolated volumes with the true HR labels (the room of thick input)",
            "trueLabels",
            after=(),
        ),
        _variant("true_hr_only", "HR head on true HR volumes, no stage 1", "trueHRDataOnly", after=()),
        Row("true_hr", "nnU-Net on true HR images (upper bound)", "SafeTrainer", "true_hr", "scratch", hr="data"),
        _variant("true_hr_data", "REHRSeg on true HR data (upper bound for thick-slice input)", "trueHRData"),
        _variant("truth_everywhere", "REHRSeg, pseudo labels replaced by the truth", "truthEverywhere"),
        _variant("truth_between", "REHRSeg, the truth between slice centres only", "truthBetweenSlices"),
        _variant("truth_at_boundaries", "REHRSeg, the truth at boundaries of pseudo labels only", "truthAtBoundaries"),
        _variant("true_uncertainty", "REHRSeg, U = 1 where the pseudo label is wrong, else 0", "trueUncertainty"),
        _variant("pseudo_data", "pseudo-HR data of self-SR alone", "pseudoDataOnly"),
        _variant("uncertainty", "+ uncertainty", "withUncertainty"),
        _variant("distillation", "+ distillation, no uncertainty", "withDistillation"),
        _variant("data_bspline", "B-spline + signed distance as pseudo-HR data", "pseudoDataBSpline", after=()),
        _variant(
            "data_bspline_directHead",
            "B-spline + signed distance, HR head for the logits themselves",
            "pseudoDataBSpline",
            after=(),
            plans="directHead",
        ),
        Row("smore", "SMORE", "SMORETrainer", start="own", plans="smore"),
        Row("self_sr_smore", "self-SR on SMORE's cases", "SelfSRTrainer", start="own", after=("smore",), plans="smore"),
        Row("rehrseg_smore", "REHRSeg on SMORE's cases", "REHRSegTrainer", after=("self_sr_smore",), plans="smore"),
        _variant("data_smore", "SMORE's cases as pseudo-HR data", "pseudoDataSMORE", after=("smore",), plans="smore"),
        *_stage_1_setting("smoreImage", "on SMORE's cases, image by SMORE", smore=True),
        _variant("mimic", "MIMIC", "MIMIC"),
        _variant("ifvd", "IFVD", "IFVD"),
        _variant("correlation", "correlation only", "correlationOnly"),
        _variant("spatial", "spatial only", "spatialOnly"),
        _variant("lambda0_01", "lambda 0.01", "lambda0_01"),
        _variant("lambda0_1", "lambda 0.1", "lambda0_1"),
        _variant("lambda10", "lambda 10", "lambda10"),
        Row(
            "self_sr_taught",
            "self-SR taught by the true HR volumes (upper bound)",
            "SelfSRTrainer_trueHRData",
            start="own",
        ),
        Row(
            "rehrseg_taught",
            "REHRSeg on self-SR taught by the true HR volumes (upper bound for stage 1)",
            "REHRSegTrainer",
            plans="taught",
            stage_1="self_sr_taught",
        ),
        *_stage_1_setting("direct", "image itself instead of a residual (Eq. 4)"),
        *_stage_1_setting("directLabels", "labels themselves instead of a residual (Eq. 4)"),
        _setting("eq11", "LR loss and data by Eq. 11 alone"),
        _setting("centred", "features compared without their means"),
        _setting("centredLambda0_1", "features compared without their means, lambda 0.1"),
        _setting("noLRDice", "no Dice in the LR loss"),
        _setting("noTrueLR", "no true acquisitions"),
        _setting("directHead", "HR head for the logits themselves"),
        _setting("interpolatingHead", "HR head on interpolated features (the paper's)"),
        _setting("exact", "exact pairs across the blurred axis in a quarter of the patches"),
        _thin("thin", "REHRSeg"),
        _thin("thinSmooth", "smooth interpolation", plans="thinSmooth"),
        _thin("thinTrueLR", "true acquisitions alone", plans="thinTrueLR"),
        _thin("thinTrueLR_pseudo_data", "true acquisitions, pseudo labels", "pseudoDataOnly", plans="thinTrueLR"),
        _thin("thinExact", "exact pairs in a quarter of the patches", plans="thinExact"),
        _thin("thinAlone", "without distillation", plans="thinAlone"),
        _thin("thinEqualLosses", "LR loss as heavy as the HR loss", plans="thinEqualLosses"),
        _thin("thinWeighted", "HR loss weighted by U", plans="thinWeighted"),
        _thin("thin_bspline", "B-spline + signed distance as pseudo-HR data", "pseudoDataBSpline", stage_1=""),
        _thin("thin_pseudo_data", "pseudo-HR data of self-SR alone", "pseudoDataOnly"),
        _thin("thin_true_labels", "true HR labels (the room)", "trueLabels", stage_1=""),
        Row("teacher", "teacher of the true thin slices", "GuidanceTeacherTrainer", "pairs", "own"),
        Row("keeper", "keeper of the true thin slices", "KnowledgeKeeperTrainer", "pairs", "own", after=("teacher",)),
        Row(
            "thin_guided",
            "thin input, guided by a keeper of the training cases' true thin slices",
            "GuidedREHRSegTrainer",
            start="scratch",
            plans="thinGuided",
            stage_1="self_sr",
            keeper="keeper",
        ),
        Row(
            "thin_guided_randomKeeper",
            "thin input, guided by a random keeper",
            "GuidedREHRSegTrainer_randomKeeper",
            start="scratch",
            plans="thinGuided",
            stage_1="self_sr",
            keeper="keeper",
        ),
        Row("scratch", "from scratch", "REHRSegTrainer", start="scratch", plans="scratch", stage_1="self_sr"),
    )
}

TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "2": ("super-resolution", ("self_sr", "smore", "self_sr_smore")),
    "3": (
        "segmentation",
        ("rehrseg", "baseline", "continued", "interpolated", "interpolated_sparse", "true_hr_data", "true_hr"),
    ),
    "4": ("components", ("rehrseg", "continued", "pseudo_data", "uncertainty", "distillation")),
    "5": (
        "source of the pseudo-HR data",
        ("rehrseg", "data_bspline", "data_bspline_directHead", "data_smore", "pseudo_data", "rehrseg_smore"),
    ),
    "6": (
        "distillation",
        ("rehrseg", "mimic", "ifvd", "correlation", "spatial", "lambda0_01", "lambda0_1", "lambda10"),
    ),
    "stage_1": (
        "stage 1",
        (
            "self_sr",
            "self_sr_smore",
            "self_sr_direct",
            "self_sr_directLabels",
            "self_sr_smoreImage",
            "self_sr_taught",
        ),
    ),
    "oracles": (
        "what there is to be had",
        (
            "rehrseg",
            "continued",
            "interpolated",
            "interpolated_true_labels",
            "thick_true_labels",
            "true_hr_only",
            "true_hr_data",
            "true_hr",
            "truth_everywhere",
            "truth_between",
            "truth_at_boundaries",
            "true_uncertainty",
            "rehrseg_taught",
        ),
    ),
    "modes": (
        "thick and thin input",
        (
            "rehrseg",
            "continued",
            "exact",
            "interpolated",
            "thin",
            "thinSmooth",
            "thinTrueLR",
            "thinTrueLR_pseudo_data",
            "thinExact",
            "thinAlone",
            "thinEqualLosses",
            "thinWeighted",
            "thin_bspline",
            "thin_pseudo_data",
            "thin_true_labels",
            "thin_guided",
            "thin_guided_randomKeeper",
            "interpolated_true_labels",
        ),
    ),
    "settings": (
        "settings",
        (
            "rehrseg",
            "eq11",
            "centred",
            "centredLambda0_1",
            "noLRDice",
            "noTrueLR",
            "directHead",
            "interpolatingHead",
            "scratch",
            "rehrseg_smoreImage",
            "rehrseg_smore",
            "rehrseg_direct",
            "rehrseg_directLabels",
            "rehrseg_taught",
        ),
    ),
}


def in_order(keys: Sequence[str]) -> list[Row]:
    """The rows and all that they build on, each once, in an order in which they can be trained.

    Raises:
        ValueError: an unknown key.
    """
    ordered: dict[str, Row] = {}

    def add(key: str) -> None:
        if key not in ROWS:
            raise ValueError(f"--rows must be among {', '.join(ROWS)}, got {key}")
        for other in ROWS[key].before:
            add(other)
        ordered.setdefault(key, ROWS[key])

    for key in keys:
        add(key)
    return list(ordered.values())
