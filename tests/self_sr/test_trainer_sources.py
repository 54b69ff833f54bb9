"""What SelfSRTrainer asks of SMORE before it exports."""

from types import SimpleNamespace

import pytest

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer


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
