"""A dataset of usual scans, and keepers of all folds for it, from the one that was trained."""

import shutil
from contextlib import contextmanager

import torch
from paired_phantom import write_usual_dataset

from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FoldRun

USUAL = 3
GUIDED, BASELINE = "GuidedTrainer", "nnUNetTrainer"
KEEPER = "KnowledgeKeeperTrainer"
FOLDS = tuple("01234")
IN_NETWORK = "decoder.seg_layers.1.guidance.keeper."


def prepare_usual(nnunet) -> None:
    """Planned and preprocessed in 3D and 2D."""
    write_usual_dataset(nnunet.raw / f"Dataset{USUAL:03d}_Usual")
    nnunet.prepare(USUAL, options=("--method", "guidance"))
    nnunet.preprocess(USUAL, configurations=("2d",))


def keepers_of_all_folds(nnunet, pairs: int) -> None:
    """Each with other weights than that of fold 0."""
    first = nnunet.fold(KEEPER, pairs)
    for fold in FOLDS[1:]:
        folder = nnunet.fold(KEEPER, pairs, fold=fold)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        checkpoint = torch.load(first / FINAL_CHECKPOINT, weights_only=False)
        for name, weights in checkpoint["network_weights"].items():
            if name.startswith("keeper."):
                weights.mul_(1 + int(fold) / 10)
        torch.save(checkpoint, folder / FINAL_CHECKPOINT)


def keeper_in(weights: dict, *, prefix: str = IN_NETWORK) -> dict:
    """The keeper's weights in a network's."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def run_of(folder) -> str:
    """What plans.json says of a keeper."""
    run = FoldRun.parse(folder)
    return str(run.folder.relative_to(run.results))


@contextmanager
def without(nnunet, number: int):
    """A dataset's files in all of nnU-Net's folders are gone for a while."""
    name, away = nnunet.dataset(number), nnunet.base / "away"
    folders = [folder / name for folder in (nnunet.raw, nnunet.preprocessed, nnunet.results)]
    away.mkdir()
    for index, folder in enumerate(folders):
        folder.rename(away / str(index))
    try:
        yield
    finally:
        for index, folder in enumerate(folders):
            (away / str(index)).rename(folder)
        away.rmdir()
