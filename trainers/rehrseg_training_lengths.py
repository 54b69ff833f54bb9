"""Every trainer in any length, named as nnU-Net names its own: `REHRSegTrainer_1epoch`, `SelfSRTrainer_100epochs`, ...

nnU-Net asks each module for an attribute of the trainer's name. This one makes the class when it is asked for it.
"""

from __future__ import annotations

import re
from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rehrseg_nnunet.trainers.rehrseg_ablations import VARIANTS
from rehrseg_nnunet.trainers.rehrseg_continued_baseline import ContinuedBaselineTrainer
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer
from rehrseg_nnunet.trainers.rehrseg_smore_trainer import SMORETrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

TRAINERS = {
    trainer.__name__: trainer
    for trainer in (SMORETrainer, SelfSRTrainer, REHRSegTrainer, ContinuedBaselineTrainer, *VARIANTS)
}
NAME = re.compile(r"(?P<trainer>\w+)_(?P<length>1epoch|[2-9]epochs|[1-9]\d+epochs)")


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    match = NAME.fullmatch(name)
    if match is None or match["trainer"] not in TRAINERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    epochs = int(match["length"].partition("epoch")[0])
    own = {"__module__": __name__, "__doc__": f"{match['trainer']} for {epochs} epochs.", "length": epochs}
    return type(name, (TRAINERS[match["trainer"]],), own)
