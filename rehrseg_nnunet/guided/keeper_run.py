"""Which keeper guides a training: the one that the user names, or the only one that is finished."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rehrseg_nnunet.config.guidance import CHANNELS_KEY
from rehrseg_nnunet.guided.frozen import TEACHER
from rehrseg_nnunet.guided.networks import stored_channels
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.dataset_json import REQUIRED_KEYS, check_keys, read_json
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FOLD_FOLDER, LENGTH_SUFFIX, FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset

KEEPER_VARIABLE = "REHRSEG_KEEPER"
KEEPER = Companion("KnowledgeKeeperTrainer", "the keeper", variable=KEEPER_VARIABLE)
OF_ANY_LENGTH = re.compile(rf"{KEEPER.trainer}(_\d+epochs?)?")
PAIRS = "PAIRS"  # for a dataset that is not known

logger = logging.getLogger(__name__)


class NoKeeperError(FileNotFoundError):
    """Nobody has named a keeper, and none is finished or can be read."""


@dataclass(frozen=True)
class KeeperRun:
    """A finished keeper and the dataset of pairs that taught it, as its training has left them.

    Attributes:
        run: its training.
    """

    run: FoldRun

    @cached_property
    def planned(self) -> PlannedDataset:
        """The pairs under the plans of its training.

        Raises:
            FileNotFoundError: plans.json or dataset.json of the training is missing.
            ValueError: one of them is damaged, or not of a keeper.
        """
        remedy = f"train the keeper again: {self.run.command}"
        manager = self.run.kept_plans(remedy=remedy)
        planned = manager.get_configuration(self.run.configuration)
        if CHANNELS_KEY not in planned.configuration:
            raise ValueError(
                f"{self.run.plans_file} must have {CHANNELS_KEY}, which the training of a keeper writes; {remedy}"
            )
        file = self.run.folder.parent / "dataset.json"
        dataset_json = read_json(file, remedy=remedy)
        check_keys(dataset_json, required=REQUIRED_KEYS, source=str(file))
        channels = stored_channels(planned.configuration)
        numbers = {str(number) for number in (*channels.source, *channels.privileged)}
        missing = ", ".join(sorted(numbers - dataset_json["channel_names"].keys()))
        if missing:
            raise ValueError(f"{file} must name the keeper's channels, {missing} is missing; {remedy}")
        return PlannedDataset(manager, planned, dataset_json)

    @property
    def configuration(self) -> dict[str, Any]:
        """Of its plans, inheritance resolved."""
        return self.planned.configuration_manager.configuration

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.planned.configuration_manager.patch_size)

    @property
    def channels(self) -> PairedChannels:
        """Which channels of the pairs are which."""
        return stored_channels(self.configuration)

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Of channels of the pairs."""
        return [self.planned.dataset_json["channel_names"][str(number)] for number in numbers]


def log_warnings(doubts: list[str]) -> None:
    """Where there is no training's log."""
    for doubt in doubts:
        logger.warning(doubt)


def find_keeper(
    own: FoldRun,
    dataset: str | int | None,
    *,
    dimension: int,
    warn: Callable[[list[str]], None] = log_warnings,
) -> KeeperRun:
    """The keeper of a training.

    REHRSEG_KEEPER goes before `dataset`, which goes before the only dataset that has a keeper. Within a dataset the
    keeper of the same configuration, length and plans is taken, or else the only one; its fold is that of the training,
    or else `all`, or else 0. Backups and damaged folders are left out.

    Args:
        own: the training to be guided.
        dataset: number or name of the dataset of pairs, if the settings name one.
        dimension: of the training, 2 or 3.
        warn: takes a sentence on each folder that is left out.

    Raises:
        NoKeeperError: none is finished; the message says what was left out and ends with the commands that train one.
        FileNotFoundError: the one that is named is not finished; likewise.
        ValueError: there are several, listed as the values that choose one, or what is named is no keeper.
    """
    named = os.environ.get(KEEPER_VARIABLE) or None
    if named is not None and (len(Path(named).parts) > 1 or FOLD_FOLDER.fullmatch(named)):
        return _chosen(Path(named).absolute(), dimension)
    wanted = dataset if named is None else Path(named).name  # a shell may have ended it by /
    found = _finished_keepers(own.results, wanted, dimension)
    warn(found.left_out)
    if not found.fitting:
        raise _none(own, wanted, found, dimension=dimension)
    datasets = sorted({keeper.run.dataset for keeper in found.fitting})
    if len(datasets) > 1:
        raise _several(own, datasets)
    return _preferred(own, found.fitting)


@dataclass(frozen=True)
class _Found:
    """Finished keepers of the wanted dimension, those of the other, and why folders are not taken for one."""

    fitting: list[KeeperRun] = field(default_factory=list)
    others: list[KeeperRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def _finished_keepers(results: Path, wanted: str | int | None, dimension: int) -> _Found:
    """Those of the wanted dataset, without variants, which must be named."""
    found = _Found()
    for model in sorted(results.glob(f"Dataset*/{KEEPER.trainer}*__*")):
        folds = _finished_folds(model)
        if not (folds and OF_ANY_LENGTH.fullmatch(model.name.partition("__")[0]) and _is_of(model.parent.name, wanted)):
            continue
        try:
            keepers = [KeeperRun(FoldRun.parse(fold)) for fold in folds]
            (found.fitting if keepers[0].dimension == dimension else found.others).extend(keepers)
        except (ValueError, OSError) as error:  # a backup or a damaged one must not keep the others from guiding
            found.left_out.append(f"not taken for a finished keeper: {error}")
    return found


def _finished_folds(model: Path) -> list[Path]:
    """Fold folders with a final checkpoint."""
    folds = (file.parent for file in sorted(model.glob(f"fold_*/{FINAL_CHECKPOINT}")))
    return [fold for fold in folds if FOLD_FOLDER.fullmatch(fold.name)]


def _chosen(folder: Path, dimension: int) -> KeeperRun:
    """The fold folder that REHRSEG_KEEPER names; variants are welcome."""
    folds = _finished_folds(folder)
    if folds:
        raise ValueError(f"{KEEPER_VARIABLE} must name a fold folder, got {folder}; choose by:{_listed(folds)}")
    run = KEEPER.chosen()
    assert run is not None  # the variable is set
    if not run.trainer.startswith(KEEPER.trainer):
        raise ValueError(f"{KEEPER_VARIABLE} must name a fold folder of {KEEPER.trainer}, got {run.folder}")
    keeper = KeeperRun(run)
    if keeper.dimension != dimension:
        raise ValueError(f"{KEEPER_VARIABLE} must name a keeper of a {dimension}d configuration, got {run.folder}")
    return keeper


def _is_of(name: str, wanted: str | int | None) -> bool:
    """Whether a dataset is the wanted one, by number or full name; None: any is."""
    if wanted is None or name == wanted:
        return True
    return str(wanted).isdigit() and name.startswith(f"Dataset{int(wanted):03d}_")


def _preferred(own: FoldRun, keepers: list[KeeperRun]) -> KeeperRun:
    """The best of a dataset's keepers."""
    suffix = LENGTH_SUFFIX.search(own.trainer)
    rules: list[Callable[[FoldRun], bool]] = [
        lambda run: run.configuration == own.configuration,
        lambda run: suffix is not None and run.trainer == KEEPER.trainer + suffix.group(),
        lambda run: run.trainer == KEEPER.trainer,
        lambda run: run.plans == own.plans,
    ]
    for rule in rules:
        keepers = [keeper for keeper in keepers if rule(keeper.run)] or keepers
    by_fold = {keeper.run.fold: keeper for keeper in keepers}
    if len({keeper.run.folder.parent for keeper in keepers}) > 1:
        raise _several(own, [keeper.run.folder for keeper in keepers])
    fold = next((fold for fold in (own.fold, "all", 0) if fold in by_fold), None)
    if fold is None:
        raise _of_other_folds(own, [keeper.run for keeper in keepers])
    return by_fold[fold]


def _listed(values: Sequence[str | Path]) -> str:
    return "".join(f"\n    {KEEPER_VARIABLE}={value}" for value in values)


def _several(own: FoldRun, values: Sequence[str | Path]) -> ValueError:
    return ValueError(f"{own.trainer} needs one keeper, and these are finished; choose by:{_listed(values)}")


def _of_other_folds(own: FoldRun, runs: Sequence[FoldRun]) -> ValueError:
    only = f"fold{'s' if len(runs) > 1 else ''} {', '.join(str(run.fold) for run in runs)}"
    needed = replace(runs[0], fold=own.fold)
    return ValueError(
        f"only {only} of {runs[0].folder.parent} {'are' if len(runs) > 1 else 'is'} finished, and fold {own.fold} of "
        f"{own.trainer} takes that of its own number, all or 0; run: {needed.command}, or choose by:"
        f"{_listed([run.folder for run in runs])}"
    )


def _none(own: FoldRun, wanted: str | int | None, found: _Found, *, dimension: int) -> FileNotFoundError:
    name = wanted if isinstance(wanted, str) and wanted.startswith("Dataset") else str(wanted or PAIRS)
    commands = [replace(own, dataset=name, trainer=trainer, fold=0) for trainer in (TEACHER.trainer, KEEPER.trainer)]
    listed = "".join(f"\n    {run.command}" for run in commands)
    where = f"of dataset {wanted} " if wanted is not None else ""
    kind = f", only of others, such as {found.others[0].run.folder}" if found.others else ""
    left_out = "".join(f"; {reason}" for reason in found.left_out)
    hint = "" if wanted is not None else f", with the dataset of `rehrseg pair` for {PAIRS}"
    error = NoKeeperError if wanted is None else FileNotFoundError
    return error(
        f"no keeper {where}of a {dimension}d configuration is finished in {own.results}{kind}{left_out}; "
        f"run{hint}:{listed}"
    )
