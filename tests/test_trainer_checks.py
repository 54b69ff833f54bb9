"""What trainers check before they write or delete anything."""

from types import SimpleNamespace

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet import plugin_trainer
from rehrseg_nnunet.trainers.rehrseg_continued_baseline import ContinuedBaselineTrainer
from rehrseg_nnunet.trainers.rehrseg_guidance_teacher_trainer import GuidanceTeacherTrainer
from rehrseg_nnunet.trainers.rehrseg_guided_trainer import GuidedTrainer
from rehrseg_nnunet.trainers.rehrseg_knowledge_keeper_trainer import KnowledgeKeeperTrainer
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer
from rehrseg_nnunet.trainers.rehrseg_smore_trainer import SMORETrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer


@pytest.mark.parametrize("trainer", [REHRSegTrainer, SelfSRTrainer, SMORETrainer, ContinuedBaselineTrainer])
def test_a_refused_setting_leaves_no_output_folder(trainer, monkeypatch):
    """nnU-Net's constructor makes the folder and the log."""
    built = []
    monkeypatch.setattr(plugin_trainer, "require_compatible", lambda: None)  # it would see the next line
    monkeypatch.setattr(nnUNetTrainer, "__init__", lambda *args: built.append(args))
    block = {"segmentation": {"affinity_per_slice": True}}
    configuration = {"architecture": {}, "spacing": [4.0, 1.0, 1.0], "batch_size": 2, "rehrseg": block}
    plans = {"plans_name": "p", "configurations": {"3d_fullres": configuration}}
    with pytest.raises(ValueError, match="affinity_per_slice True is no setting since"):
        trainer(plans, "3d_fullres", 0, {})
    assert not built


@pytest.mark.parametrize("trainer", [GuidanceTeacherTrainer, KnowledgeKeeperTrainer, GuidedTrainer])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": {"fusion": {"hidden": 2}}}, "guidance.fusion.hidden"),
        ({"previous_stage": "3d_lowres"}, "guidance does not support cascades"),
    ],
)
def test_nor_does_one_of_the_guidance(trainer, changes, message, monkeypatch):
    built = []
    monkeypatch.setattr(plugin_trainer, "require_compatible", lambda: None)
    monkeypatch.setattr(nnUNetTrainer, "__init__", lambda *args: built.append(args))
    configuration = {"architecture": {}, "spacing": [1.0, 1.0, 1.0], "batch_size": 2, **changes}
    plans = {"plans_name": "p", "configurations": {"3d_fullres": configuration}}
    with pytest.raises((ValueError, NotImplementedError), match=message):
        trainer(plans, "3d_fullres", 0, {"channel_names": {"0": "a", "1": "b"}})
    assert not built


class LostCases:
    """SMORE's cases, which went while stage 1 was trained."""

    def cases(self, identifiers):
        raise FileNotFoundError(f"{identifiers[0]} was not written; run: nnUNetv2_train")

    def fingerprint(self):
        return {"smore_weights_sha256": None}


def test_what_cases_are_made_with_is_not_said_without_smores_cases():
    """The store deletes cases of another header, so a header that cannot be fulfilled must not be made."""
    config = load_config({"spacing": (4.0, 1.0, 1.0), "rehrseg": {"self_sr": {"export": {"image": "smore"}}}})
    trainer = object.__new__(SelfSRTrainer)
    vars(trainer).update(config=config, settings=config.self_sr, interpolated=LostCases())
    vars(trainer).update(do_split=lambda: (["case_1"], []), network=SimpleNamespace())
    with pytest.raises(FileNotFoundError, match="case_1 was not written"):
        trainer.made_with()
