"""Trainers as nnU-Net finds them: by name, in any length."""

import inspect
import pickle
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from rehrseg_nnunet.cli.trainers import VARIABLE, ensure_trainer_path
from rehrseg_nnunet.config.guidance import change_config, load_config
from rehrseg_nnunet.config.rehrseg import RehrsegConfig, change_segmentation
from rehrseg_nnunet.guided.frozen import TEACHER as FROZEN_TEACHER
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BASELINE
from rehrseg_nnunet.self_sr.frozen import SELF_SR
from rehrseg_nnunet.trainers import (
    rehrseg_ablations,
    rehrseg_guidance_ablations,
    rehrseg_guided_ablations,
    rehrseg_training_lengths,
)
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

# the settings that each variant has
VARIANTS = {
    "pseudoDataOnly": {"uncertainty_weighting": False, "distillation_weight": 0},
    "withUncertainty": {"uncertainty_weighting": True, "distillation_weight": 0},
    "withDistillation": {"uncertainty_weighting": False},
    "pseudoDataBSpline": {"uncertainty_weighting": False, "distillation_weight": 0},
    "pseudoDataSMORE": {"uncertainty_weighting": False, "distillation_weight": 0},
    "MIMIC": {"distillation": "mimic"},
    "IFVD": {"distillation": "ifvd"},
    "correlationOnly": {"distillation": "correlation"},
    "spatialOnly": {"distillation": "spatial"},
    "lambda0_01": {"distillation_weight": 0.01},
    "lambda0_1": {"distillation_weight": 0.1},
    "lambda1": {"distillation_weight": 1},
    "lambda10": {"distillation_weight": 10},
}
TEACHER, KEEPER = "GuidanceTeacherTrainer", "KnowledgeKeeperTrainer"
# by trainer
GUIDANCE_VARIANTS = {
    f"{TEACHER}_noNoise": {"teacher": {"noise_std": 0}},
    f"{TEACHER}_noFeatureReconstruction": {"teacher": {"feature_weight": 0}},
    f"{KEEPER}_noMatching": {"keeper": {"matching_weight": 0}},
    f"{KEEPER}_noFeatures": {"keeper": {"matching_weight": 0, "distillation_weight": 0, "residual": False}},
    f"{KEEPER}_noAdversary": {"keeper": {"adversarial_weight": 0}},
    f"{KEEPER}_noRecalibration": {"keeper": {"recalibration": False}},
    f"{KEEPER}_noResidual": {"keeper": {"residual": False}},
}
GUIDED = "GuidedTrainer"
GUIDED_VARIANTS = {
    f"{GUIDED}_scalarFusion": {"fusion": {"kind": "scalar"}},
    f"{GUIDED}_sameLevel": {"fusion": {"guides": "same_level"}},
    f"{GUIDED}_noRefinement": {"fusion": {"refinement": False}},
    f"{GUIDED}_decoderOnly": {"fusion": {"kind": "decoder_only", "stages": None}},
    f"{GUIDED}_randomKeeper": {},
    f"{GUIDED}_untaughtKeeper": {},
    "GuidedREHRSegTrainer_randomKeeper": {},
}
BOTH = "GuidedREHRSegTrainer"
BASES = ["SMORETrainer", "SelfSRTrainer", "REHRSegTrainer", "ContinuedBaselineTrainer", TEACHER, KEEPER, GUIDED, BOTH]
NAMES = [*BASES, *(f"REHRSegTrainer_{variant}" for variant in VARIANTS), *GUIDANCE_VARIANTS, *GUIDED_VARIANTS]
NNUNETS_LENGTHS = ["1epoch", *(f"{n}epochs" for n in (5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000))]


def looked_for(companion: Companion, trainer: str) -> list[str]:
    """Trainers whose runs a training builds on, best first."""
    own = FoldRun("Dataset009_X", trainer, "p", "3d_fullres", 0, Path())
    return [run.trainer for run in own.siblings(companion.trainer)]


@pytest.fixture
def find(monkeypatch):
    """nnU-Net's own search."""
    monkeypatch.setenv(VARIABLE, "")
    ensure_trainer_path()
    return recursive_find_trainer_class_by_name


@pytest.mark.parametrize("name", NAMES)
def test_nnunet_finds_every_trainer_in_every_length(find, name):
    for suffix, length in (("", None), ("_1epoch", 1), ("_30epochs", 30)):
        trainer = find(name + suffix)
        assert trainer.__name__ == name + suffix
        assert trainer.length == length
        assert issubclass(trainer, nnUNetTrainer)
        assert trainer.__init__ is PluginTrainer.__init__
        assert list(inspect.signature(trainer.__init__).parameters) == list(
            inspect.signature(nnUNetTrainer.__init__).parameters
        )


def test_nnunet_finds_a_trainer_in_the_file_that_is_named_after_it(find, capsys):
    for name, file in (
        ("REHRSegTrainer", "rehrseg_trainer"),
        ("REHRSegTrainer_IFVD", "rehrseg_ablations"),
        ("REHRSegTrainer_IFVD_5epochs", "rehrseg_training_lengths"),
        (KEEPER, "rehrseg_knowledge_keeper_trainer"),
        (f"{KEEPER}_noAdversary", "rehrseg_guidance_ablations"),
        (GUIDED, "rehrseg_guided_trainer"),
        (BOTH, "rehrseg_guided_rehrseg_trainer"),
        (f"{GUIDED}_sameLevel", "rehrseg_guided_ablations"),
    ):
        find(name)
        assert f"Found class {name} in {file}\n" in capsys.readouterr().out


def test_every_variant_is_known():
    """Here, and to the module of the lengths."""
    defined = [
        trainer
        for name, trainer in vars(rehrseg_ablations).items()
        if inspect.isclass(trainer) and issubclass(trainer, REHRSegTrainer)
    ]
    assert {trainer.__name__ for trainer in defined} == {f"REHRSegTrainer_{variant}" for variant in VARIANTS}
    assert set(rehrseg_ablations.VARIANTS) == set(defined)
    assert {trainer.__name__ for trainer in rehrseg_guidance_ablations.VARIANTS} == set(GUIDANCE_VARIANTS)
    assert {trainer.__name__ for trainer in rehrseg_guided_ablations.VARIANTS} == set(GUIDED_VARIANTS)
    assert set(rehrseg_training_lengths.TRAINERS) == set(NAMES)


@pytest.mark.parametrize(("variant", "changes"), VARIANTS.items())
def test_variants_change_what_they_say(variant, changes):
    trainer = getattr(rehrseg_ablations, f"REHRSegTrainer_{variant}")
    assert trainer.changes == changes
    changed = change_segmentation(RehrsegConfig(), trainer.changes).segmentation
    assert changed == RehrsegConfig().segmentation.model_copy(update=changes)
    longer = getattr(rehrseg_training_lengths, f"REHRSegTrainer_{variant}_30epochs")
    assert longer.changes == changes


@pytest.mark.parametrize(("name", "changes"), (GUIDANCE_VARIANTS | GUIDED_VARIANTS).items())
def test_variants_of_the_guidance_change_what_they_say(name, changes):
    trainer = rehrseg_training_lengths.TRAINERS[name]
    attribute = "guidance_changes" if name in GUIDED_VARIANTS else "changes"
    assert getattr(trainer, attribute) == changes
    config = load_config({"spacing": (1, 1, 1), "batch_size": 2})
    changed, plain = change_config(config, changes).model_dump(), config.model_dump()
    assert changed == {**plain, **{part: {**plain[part], **settings} for part, settings in changes.items()}}
    assert (changed != plain) == bool(changes)
    assert getattr(getattr(rehrseg_training_lengths, f"{name}_30epochs"), attribute) == changes


def test_keepers_of_any_variant_are_taught_by_the_same_teacher():
    for name in (KEEPER, f"{KEEPER}_noMatching"):
        assert looked_for(FROZEN_TEACHER, f"{name}_20epochs") == [f"{TEACHER}_20epochs", TEACHER]


@pytest.mark.parametrize("length", NNUNETS_LENGTHS)
def test_nnunets_own_lengths(length):
    trainer = getattr(rehrseg_training_lengths, f"REHRSegTrainer_{length}")
    assert f"{trainer.length}epoch" == length.removesuffix("s")
    assert looked_for(SELF_SR, trainer.__name__) == [f"SelfSRTrainer_{length}", "SelfSRTrainer"]


@pytest.mark.parametrize(
    "name",
    [
        "REHRSegTrainer_0epochs",
        "REHRSegTrainer_1epochs",
        "REHRSegTrainer_5epoch",
        "REHRSegTrainer_05epochs",
        "REHRSegTrainer_-5epochs",
        "REHRSegTrainer_5epochs_10epochs",
        "REHRSegTrainer_MIMIK_5epochs",
        "REHRSegTrainer_epochs",
        "nnUNetTrainer_7epochs",
        "_5epochs",
        "__path__",
    ],
)
def test_other_names_are_no_trainers(name):
    assert not hasattr(rehrseg_training_lengths, name)


def test_a_trainer_of_a_length_is_one_class_that_can_be_pickled():
    trainer = rehrseg_training_lengths.REHRSegTrainer_30epochs
    assert trainer is rehrseg_training_lengths.REHRSegTrainer_30epochs
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    assert trainer.__doc__ == "REHRSegTrainer for 30 epochs."


def test_variants_build_on_the_same_runs_of_their_fold():
    for variant in VARIANTS:
        assert looked_for(SELF_SR, f"REHRSegTrainer_{variant}") == ["SelfSRTrainer"]
        assert looked_for(BASELINE, f"REHRSegTrainer_{variant}_20epochs") == [
            "nnUNetTrainer_20epochs",
            "nnUNetTrainer",
        ]
