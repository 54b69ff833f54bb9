"""Other training lengths, named as nnU-Net names its own."""

from __future__ import annotations

from rehrseg_nnunet.trainers.rehrseg_continued_baseline import ContinuedBaselineTrainer
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer


class SelfSRTrainer_1epoch(SelfSRTrainer):
    """1 epoch."""

    length = 1


class SelfSRTrainer_5epochs(SelfSRTrainer):
    """5 epochs."""

    length = 5


class SelfSRTrainer_10epochs(SelfSRTrainer):
    """10 epochs."""

    length = 10


class SelfSRTrainer_20epochs(SelfSRTrainer):
    """20 epochs."""

    length = 20


class SelfSRTrainer_50epochs(SelfSRTrainer):
    """50 epochs."""

    length = 50


class SelfSRTrainer_100epochs(SelfSRTrainer):
    """100 epochs."""

    length = 100


class SelfSRTrainer_250epochs(SelfSRTrainer):
    """250 epochs."""

    length = 250


class SelfSRTrainer_500epochs(SelfSRTrainer):
    """500 epochs."""

    length = 500


class REHRSegTrainer_1epoch(REHRSegTrainer):
    """1 epoch."""

    length = 1


class REHRSegTrainer_5epochs(REHRSegTrainer):
    """5 epochs."""

    length = 5


class REHRSegTrainer_10epochs(REHRSegTrainer):
    """10 epochs."""

    length = 10


class REHRSegTrainer_20epochs(REHRSegTrainer):
    """20 epochs."""

    length = 20


class REHRSegTrainer_50epochs(REHRSegTrainer):
    """50 epochs."""

    length = 50


class REHRSegTrainer_100epochs(REHRSegTrainer):
    """100 epochs."""

    length = 100


class REHRSegTrainer_250epochs(REHRSegTrainer):
    """250 epochs."""

    length = 250


class REHRSegTrainer_500epochs(REHRSegTrainer):
    """500 epochs."""

    length = 500


class ContinuedBaselineTrainer_1epoch(ContinuedBaselineTrainer):
    """1 epoch."""

    length = 1


class ContinuedBaselineTrainer_5epochs(ContinuedBaselineTrainer):
    """5 epochs."""

    length = 5


class ContinuedBaselineTrainer_10epochs(ContinuedBaselineTrainer):
    """10 epochs."""

    length = 10


class ContinuedBaselineTrainer_20epochs(ContinuedBaselineTrainer):
    """20 epochs."""

    length = 20


class ContinuedBaselineTrainer_50epochs(ContinuedBaselineTrainer):
    """50 epochs."""

    length = 50


class ContinuedBaselineTrainer_100epochs(ContinuedBaselineTrainer):
    """100 epochs."""

    length = 100


class ContinuedBaselineTrainer_250epochs(ContinuedBaselineTrainer):
    """250 epochs."""

    length = 250


class ContinuedBaselineTrainer_500epochs(ContinuedBaselineTrainer):
    """500 epochs."""

    length = 500
