"""A page at the end of a training's validation, where the user asks for one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import distributed as dist

from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.report.folds import WantedFolds, read_folds
from rehrseg_nnunet.report.page import write_page

VARIABLE = "REHRSEG_REPORT"
FILE = "report.html"
_OFF = ("", "0", "false")


def is_asked_for() -> bool:
    """Whether the environment variable `REHRSEG_REPORT` is on."""
    return os.environ.get(VARIABLE, "").lower() not in _OFF


def report_when_all_are_done(trainer: TrainerMixin) -> None:
    """Write a page of a trainer's fold once every rank of a DDP training has written its predictions."""
    if trainer.is_ddp and is_asked_for():
        dist.barrier()
    if trainer.local_rank == 0:
        report_fold(trainer)


def report_fold(trainer: TrainerMixin) -> None:
    """Write `report.html` into a trainer's folder; what prevents it is said in the log and does not end training."""
    if not is_asked_for():
        return
    run = FoldRun.of_trainer(trainer)
    file = Path(trainer.output_folder, FILE)
    try:
        with tempfile.TemporaryDirectory(prefix="rehrseg-report-") as scratch:
            wanted = WantedFolds(run.dataset, run.configuration, (str(run.fold),), run.trainer, run.plans)
            write_page(read_folds(wanted, Path(scratch)), file)
    except (ValueError, OSError) as error:
        trainer.print_to_log_file(f"WARNING: no page was written: {error}")
    else:
        trainer.print_to_log_file(f"to look at: {file}")
