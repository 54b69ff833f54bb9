"""Where a trained model lies: its folder, the folder of its dataset, or a zip file as nnU-Net exports it.

No variable of nnU-Net's is needed. A model's folder holds `dataset.json`, `plans.json` and
`fold_*/checkpoint_final.pth`, whatever it is called; nnU-Net calls it `TRAINER__PLANS__CONFIGURATION`.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json, read_plans
from rehrseg_nnunet.nnunet.folders import check_model_path
from rehrseg_nnunet.nnunet.weights import first_not_finite, read_checkpoint

FINAL = "checkpoint_final.pth"
_NEEDED = ("dataset.json", "plans.json")
_FOLD = re.compile(r"fold_(\d+|all)")
# their images and features are for other trainings
_FOR_TRAINING = ("SelfSRTrainer", "SMORETrainer", "GuidanceTeacherTrainer", "KnowledgeKeeperTrainer")
_CHOOSE = "choose other folds with -f, or another checkpoint with -chk"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # the last: encrypted


@dataclass(frozen=True)
class Wanted:
    """Which of several models is meant; None for any.

    Attributes:
        trainer: class name.
        plans: plans name.
        configuration: such as 3d_fullres.
        kind: how the names of the trainers begin whose models are of use; None: models that segment scans are.
    """

    trainer: str | None = None
    plans: str | None = None
    configuration: str | None = None
    kind: str | None = None

    def can_use(self, name: str) -> bool:
        """Whether a model's folder name, unless it has been renamed, is that of a model of the kind."""
        if self.kind is None:
            return not name.startswith(_FOR_TRAINING)
        return name.startswith(self.kind) or "__" not in name

    def fits(self, name: str) -> bool:
        """Whether a model's folder name is one of those that are meant."""
        parts = name.split("__")
        wanted = (self.trainer, self.plans, self.configuration)
        if not any(wanted):
            return True
        return len(parts) == 3 and all(w in (None, part) for w, part in zip(wanted, parts, strict=True))

    def check(self, trainer: str, plans: str, configuration: str, *, source: str) -> None:
        """Refuse a model that is another one than is meant, whatever its folder is called.

        Raises:
            ValueError: names both.
        """
        wanted, found = (self.trainer, self.plans, self.configuration), (trainer, plans, configuration)
        for flag, w, f in zip(("-tr", "-p", "-c"), wanted, found, strict=True):
            if w not in (None, f):
                raise ValueError(f"{flag} must be that of the model in {source}, {f}, got {w}; leave it out")


@dataclass(frozen=True)
class TrainedModel:
    """A model whose checkpoints are there and readable.

    Attributes:
        folder: holds `dataset.json`, `plans.json` and folds.
        folds: those to predict with.
        checkpoint: file name in each fold's folder.
        trainer: class name, from the checkpoint.
        configuration: from the checkpoint.
        source: what the user calls the model, for messages.
    """

    folder: Path
    folds: tuple[int | str, ...]
    checkpoint: str
    trainer: str
    configuration: str
    source: str

    def load_into(self, predictor: nnUNetPredictor) -> None:
        """Let a predictor hold the model; its files are not needed any more then.

        Raises:
            ValueError: the parts of the model do not fit together.
        """
        folder, folds = str(self.folder), cast("Any", self.folds)  # declared for one fold
        try:
            # nnU-Net speaks of its search for trainers, in which it imports packages that warn
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                predictor.initialize_from_trained_model_folder(folder, folds, checkpoint_name=self.checkpoint)
        except NotImplementedError:  # what this package does not do with a whole model
            raise
        except (RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.source} must be a model whose dataset.json, plans.json and {self.checkpoint} belong together, "
                f"made by a trainer that is there ({self.trainer}), got {type(error).__name__}: {error}; copy the "
                "model anew, or name the trainer's folder in nnUNet_extTrainer"
            ) from error


@contextmanager
def open_model(path: Path, wanted: Wanted, *, checkpoint: str = FINAL) -> Iterator[Path]:
    """The folder of a trained model; what was unpacked for it is removed at the end.

    Args:
        path: the model's folder, one with exactly one model that is meant in it or a level further down, or a zip file.
        wanted: which of several.
        checkpoint: the file that is unpacked from each fold of a zip file.

    Raises:
        FileNotFoundError: nothing there, or no model.
        ValueError: several models, a damaged zip file, or a file that is none.
    """
    check_model_path(path)
    if path.is_dir():
        yield _find_folder(path, wanted)
    else:
        with tempfile.TemporaryDirectory(prefix="rehrseg-model-") as scratch:
            yield _unpack(path, wanted, Path(scratch), checkpoint)


def _find_folder(path: Path, wanted: Wanted) -> Path:
    if _is_model(path):
        return path
    if _FOLD.fullmatch(path.name) and _is_model(path.parent):
        raise ValueError(f"-m must be a model's folder, got its fold {path}; use -m {path.parent} -f {path.name[5:]}")
    found = sorted(file.parent for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/plans.json"))
    models = {str(folder.relative_to(path)): folder for folder in found if _is_model(folder)}
    return models[_choose(path, list(models), wanted)]


def _is_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _NEEDED) and any(folder.glob("fold_*"))


def _choose(path: Path, models: Sequence[str], wanted: Wanted) -> str:
    """The one model that is meant among those that a folder or zip file holds."""
    names = {model: PurePosixPath(model.replace("\\", "/")).name for model in models}
    models = [model for model in models if wanted.can_use(names[model])]
    fitting = [model for model in models if wanted.fits(names[model])]
    if len(fitting) == 1:
        return fitting[0]
    if not models:
        lacking = "which cannot segment" if wanted.kind is None else f"none of {wanted.kind}"
        raise FileNotFoundError(
            f"{path} must hold a trained nnU-Net model ({', '.join(_NEEDED)} and fold_0/{FINAL}), got "
            f"{'only ' + ', '.join(names) + ', ' + lacking if names else 'none'}"
        )
    if not fitting:
        raise FileNotFoundError(f"{path} has no such model, only: {', '.join(models)}; choose with -tr, -p and -c")
    raise ValueError(f"{path} must hold one model, got {', '.join(fitting)}; choose with -tr, -p and -c")


def _unpack(file: Path, wanted: Wanted, scratch: Path, checkpoint: str) -> Path:
    """Unpack what prediction needs of a zip file, under names that do not come from it but for those of the folds."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {PurePosixPath(name): name for name in archive.namelist()}
            models = sorted(str(entry.parent) for entry in entries if entry.name == "plans.json")
            chosen = PurePosixPath(_choose(file, models, wanted))
            target = scratch / "model"
            target.mkdir()
            for entry, name in entries.items():
                place = _place(entry, chosen, checkpoint)
                if place is not None:
                    _copy(archive, name, target / place)
    except _DAMAGED as error:
        raise ValueError(
            f"{file} must be a zip file as nnUNetv2_export_model_to_zip writes it, got {type(error).__name__}: "
            f"{error}; export or download it again"
        ) from None
    missing = [name for name in _NEEDED if not (target / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{file} must hold {chosen / missing[0]}, got none; export the model again")
    return target


def _place(entry: PurePosixPath, model: PurePosixPath, checkpoint: str) -> str | None:
    """Where an entry goes in the unpacked model's folder, None where prediction does not need it."""
    if entry.parent == model and entry.name in _NEEDED:
        return entry.name
    if entry.name == checkpoint and entry.parent.parent == model and _FOLD.fullmatch(entry.parent.name):
        return f"{entry.parent.name}/{checkpoint}"
    return None


def _copy(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    try:
        with archive.open(name) as source, target.open("wb") as stream:
            shutil.copyfileobj(source, stream)
    except OSError as error:
        raise OSError(
            f"{name} of {archive.filename} could not be unpacked to {target.parents[1].parent} ({error.strerror}); "
            "free space there, or name another folder in the environment variable TMPDIR"
        ) from error


def trained_model(
    folder: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = FINAL,
    source: str | None = None,
    wanted: Wanted | None = None,
) -> TrainedModel:
    """Find a model's files and read them, before any work.

    Args:
        folder: the model's.
        folds: those that are meant; None for all that are trained, but for fold "all" beside numbered ones.
        checkpoint: file name in each fold's folder.
        source: what the user calls the model, for messages; its folder by default.
        wanted: which model is meant.

    Raises:
        FileNotFoundError: a fold has no such checkpoint.
        ValueError: a file is damaged, or this is another model than is meant.
    """
    zip_file = None if source is None or Path(source).is_dir() else source
    with _named_by_source(folder, zip_file):
        return _trained_model(folder, folds, checkpoint, zip_file, wanted or Wanted())


@contextmanager
def _named_by_source(folder: Path, source: str | None) -> Iterator[None]:
    """Let messages about an unpacked model name the zip file, which is what the user knows."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if source is None:
            raise
        raise type(error)(str(error).replace(f"{folder}/", f"{source}: ")) from None


def _trained_model(
    folder: Path, folds: Sequence[int | str] | None, checkpoint: str, source: str | None, wanted: Wanted
) -> TrainedModel:
    read_dataset_json(folder / "dataset.json", required=("labels", "file_ending"))
    plans = read_plans(folder / "plans.json", remedy="copy the model anew")
    trained = _trained_folds(folder, checkpoint)
    if folds is None:
        folds = [fold for fold in trained if fold != "all"] or trained
    missing = [fold for fold in folds if fold not in trained] if folds else ["0"]
    if missing:
        shown = folder / f"fold_{missing[0]}" / checkpoint if source is None else f"fold_{missing[0]}/{checkpoint}"
        raise FileNotFoundError(
            f"fold {missing[0]} is not trained: {shown} does not exist{f' in {source}' if source else ''}; trained "
            f"folds: {' '.join(map(str, trained)) or 'none'}; choose with -f, or another checkpoint with -chk"
        )
    contents = [_read(folder / f"fold_{fold}" / checkpoint) for fold in folds]
    shapes = [{name: values.shape for name, values in content["network_weights"].items()} for content in contents]
    if other := [fold for fold, found in zip(folds, shapes, strict=True) if found != shapes[0]]:
        raise ValueError(
            f"{folder / f'fold_{other[0]}' / checkpoint} must hold the same network as fold {folds[0]}, got another "
            f"one; {_CHOOSE}"
        )
    try:
        trainer, configuration = contents[0]["trainer_name"], contents[0]["init_args"]["configuration"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{folder / f'fold_{folds[0]}' / checkpoint} must be an nnU-Net checkpoint, got one that names no trainer; "
            f"{_CHOOSE}"
        ) from None
    shown = source or str(folder)
    wanted.check(trainer, plans.get("plans_name", ""), configuration, source=shown)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{folder / 'plans.json'} must have the configuration of the checkpoint, {configuration}, got "
            f"{', '.join(plans['configurations'])}; copy the model anew"
        )
    return TrainedModel(folder, tuple(folds), checkpoint, trainer, configuration, shown)


def _read(file: Path) -> dict[str, Any]:
    """A checkpoint whose training has not diverged."""
    content = read_checkpoint(file, remedy=_CHOOSE)
    name = first_not_finite(content["network_weights"])
    if name is not None:
        raise ValueError(f"{file} must hold finite weights, got NaN or infinite ones in {name}; {_CHOOSE}")
    return content


def _trained_folds(folder: Path, checkpoint: str) -> list[int | str]:
    names = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))
    return [int(name) if name.isdigit() else name for name in names]


def parse_folds(values: Sequence[str | int]) -> list[int | str]:
    """Folds as -f gives them.

    Raises:
        ValueError: neither numbers nor all, or one of them twice.
    """
    for value in values:
        if value != "all" and not str(value).isdigit():
            raise ValueError(f"-f must be numbers or all, got {value}")
    if len(set(map(str, values))) < len(values):
        raise ValueError(f"-f must name every fold once, got {' '.join(map(str, values))}")
    return [value if value == "all" else int(value) for value in values]
