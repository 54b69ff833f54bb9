"""Which keeper guides a training: the one that the user names, or the only one that is finished."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.guided.frozen import TEACHER
from rehrseg_nnunet.guided.networks import stored_channels
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json, read_plans
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FOLD_FOLDER, LENGTH_SUFFIX, FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset

KEEPER_VARIABLE = "REHRSEG_KEEPER"
KEEPER = Companion("KnowledgeKeeperTrainer", "the keeper", variable=KEEPER_VARIABLE)
OF_ANY_LENGTH = re.compile(rf"{KEEPER.trainer}(_\d+epochs?)?")
PAIRS = "PAIRS"  # for a dataset that is not known


class NoKeeperError(FileNotFoundError):
    """Nobody has named a keeper, and none is finished."""


@dataclass(frozen=True)
class KeeperRun:
    """A finished keeper and the dataset of pairs that taught it, as its training has left them.

    Attributes:
        run: its training.
    """

    run: FoldRun

    @cached_property
    def planned(self) -> PlannedDataset:
        """The pairs under the plans of its training."""
        folder, remedy = self.run.folder.parent, f"train the keeper again: {self.run.command}"
        manager = PlansManager(read_plans(folder / "plans.json", remedy=remedy))
        dataset_json = read_dataset_json(folder / "dataset.json")
        return PlannedDataset(manager, manager.get_configuration(self.run.configuration), dataset_json)

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


def find_keeper(own: FoldRun, dataset: str | int | None, *, dimension: int) -> KeeperRun:
    """The keeper of a training.

    REHRSEG_KEEPER goes before `dataset`, which goes before the only dataset that has a keeper. Within a dataset the
    keeper of the same configuration, length and plans is taken, or else the only one; its fold is that of the training,
    or else `all`, or else 0.

    Args:
        own: the training to be guided.
        dataset: number or name of the dataset of pairs, if the settings name one.
        dimension: of the training, 2 or 3.

    Raises:
        NoKeeperError: none is finished; the message ends with the commands that train one.
        FileNotFoundError: the one that is named is not finished; likewise.
        ValueError: there are several, listed as the values that choose one, or what is named is no keeper.
    """
    named = os.environ.get(KEEPER_VARIABLE) or None
    if named is not None and (len(Path(named).parts) > 1 or FOLD_FOLDER.fullmatch(named)):
        return _chosen(dimension)
    wanted = dataset if named is None else Path(named).name  # a shell may have ended it by /
    found = [keeper for keeper in finished_keepers(own.results) if _is_of(keeper.run.dataset, wanted)]
    fitting = [keeper for keeper in found if keeper.dimension == dimension]
    if not fitting:
        raise _none(own, wanted, others=found, dimension=dimension)
    datasets = sorted({keeper.run.dataset for keeper in fitting})
    if len(datasets) > 1:
        raise _several(own, datasets)
    return _preferred(own, fitting)


def finished_keepers(results: Path) -> list[KeeperRun]:
    """All keepers but those of variants, which must be named."""
    files = sorted(results.glob(f"Dataset*/{KEEPER.trainer}*__*/fold_*/{FINAL_CHECKPOINT}"))
    runs = [FoldRun.parse(file.parent) for file in files if FOLD_FOLDER.fullmatch(file.parent.name)]
    return [KeeperRun(run) for run in runs if OF_ANY_LENGTH.fullmatch(run.trainer)]


def _chosen(dimension: int) -> KeeperRun:
    """The fold folder that REHRSEG_KEEPER names; variants are welcome."""
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
    fold = next((fold for fold in (own.fold, "all", 0) if fold in by_fold), None)
    if fold is None or len({keeper.run.folder.parent for keeper in keepers}) > 1:
        raise _several(own, [str(keeper.run.folder) for keeper in keepers])
    return by_fold[fold]


def _several(own: FoldRun, values: Sequence[str]) -> ValueError:
    listed = "".join(f"\n    {KEEPER_VARIABLE}={value}" for value in values)
    return ValueError(f"{own.trainer} needs one keeper, and these are finished; choose by:{listed}")


def _none(own: FoldRun, wanted: str | int | None, *, others: Sequence[KeeperRun], dimension: int) -> FileNotFoundError:
    name = wanted if isinstance(wanted, str) and wanted.startswith("Dataset") else str(wanted or PAIRS)
    commands = [replace(own, dataset=name, trainer=trainer, fold=0) for trainer in (TEACHER.trainer, KEEPER.trainer)]
    listed = "".join(f"\n    {run.command}" for run in commands)
    where = f"of dataset {wanted} " if wanted is not None else ""
    kind = f", only of others, such as {others[0].run.folder}" if others else ""
    hint = "" if wanted is not None else f", with the dataset of `rehrseg pair` for {PAIRS}"
    error = NoKeeperError if wanted is None else FileNotFoundError
    return error(
        f"no keeper {where}of a {dimension}d configuration is finished in {own.results}{kind}; run{hint}:{listed}"
    )
