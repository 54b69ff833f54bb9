"""Trained folds, as nnU-Net keeps them, as material of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.evaluation.upsampling import METHODS, upsample_folder
from rehrseg_nnunet.guided.frozen import TEACHER
from rehrseg_nnunet.guided.keeper_run import KEEPER
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json, read_plans
from rehrseg_nnunet.nnunet.fold_run import FOLD_FOLDER, FoldRun
from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.raw_files import image_files, listed
from rehrseg_nnunet.nnunet.training_start import BASELINE
from rehrseg_nnunet.nnunet.whole_files import WholeFilesPlansManager
from rehrseg_nnunet.report.cases import CaseFiles, describe_spacing
from rehrseg_nnunet.report.material import Material
from rehrseg_nnunet.report.predictions import existing, grid_files, score
from rehrseg_nnunet.report.stage_1 import Stage1
from rehrseg_nnunet.report.training_log import TrainingLog, read_logs
from rehrseg_nnunet.self_sr.frozen import SELF_SR

THICK, THIN = "validation", "validation_hr"
_STAGE_1 = SELF_SR.trainer


@dataclass(frozen=True)
class WantedFolds:
    """What the user named.

    Attributes:
        dataset: number or name.
        configuration: of the plans.
        folds: numbers or "all"; empty for all that are there.
        trainer: class name.
        plans: plans name.
        baseline: another trainer's class name; None takes the fold's finished nnUNetTrainer.
    """

    dataset: str
    configuration: str
    folds: tuple[str, ...] = ()
    trainer: str = "REHRSegTrainer"
    plans: str = "nnUNetPlans"
    baseline: str | None = None

    def runs(self) -> list[FoldRun]:
        """The trainings.

        Raises:
            FileNotFoundError: one that is not there; the message has the command that trains it.
            ValueError: a fold that is no number.
        """
        results = nnunet_folder("nnUNet_results")
        run = FoldRun(
            find_dataset(results, self.dataset).name, self.trainer, self.plans, self.configuration, 0, results
        )
        folds = self.folds or _folds_there(run.folder.parent)
        runs = [FoldRun.parse(run.folder.with_name(f"fold_{fold}")) for fold in folds or ("0",)]
        for run in runs:
            if not run.folder.is_dir():
                raise FileNotFoundError(f"{run.folder} does not exist; train it with {run.command}, or choose with -tr")
        return runs


def _folds_there(model: Path) -> list[str]:
    found = (FOLD_FOLDER.fullmatch(folder.name) for folder in sorted(model.glob("fold_*")))
    return [match[1] for match in found if match]


def read_folds(wanted: WantedFolds, scratch: Path) -> Material:
    """Find and score the validation cases of some folds of one model.

    Args:
        wanted: what the user named.
        scratch: existing folder for the baseline's labels on thin slices.

    Raises:
        FileNotFoundError: a training, its dataset or its validation is missing.
        ValueError: files that cannot be used.
    """
    runs = wanted.runs()
    _check_segments(runs[0])
    model = runs[0].folder.parent
    dataset_json = read_dataset_json(model / "dataset.json", required=("labels", "file_ending"))
    plans = WholeFilesPlansManager(read_plans(model / "plans.json", remedy="it lies beside the folds of every model"))
    validated = [run for run in runs if (run.folder / THICK).is_dir()]
    stage_1 = _stage_1(runs)
    if not validated and not stage_1:
        raise FileNotFoundError(
            f"{runs[0].folder / THICK} does not exist: the training has no validation yet; run: {runs[0].command} --val"
        )
    material = Material(
        title=f"{wanted.trainer}, {runs[0].dataset}",
        facts=_facts(wanted, runs, plans),
        dataset_json=dataset_json,
        reader=plans.image_reader_writer_class(),
        cases=(),
        model=wanted.trainer,
        trainings=_trainings(runs, wanted),
        stage_1=stage_1,
    )
    return _with_cases(material, validated, wanted, plans, scratch) if validated else material


def _check_segments(run: FoldRun) -> None:
    """Refuse teachers and keepers, whose validation has no labels."""
    if run.trainer.startswith((TEACHER.trainer, KEEPER.trainer)):
        raise ValueError(
            f"-tr must be a trainer of segmentations, got {run.trainer}, which gives images: their scores and pictures "
            f"are in {run.folder}"
        )


def _with_cases(
    material: Material, runs: Sequence[FoldRun], wanted: WantedFolds, plans: WholeFilesPlansManager, scratch: Path
) -> Material:
    raw = find_dataset(nnunet_folder("nnUNet_raw"), runs[0].dataset)
    dataset_json, ending = material.dataset_json, material.dataset_json["file_ending"]
    baselines = [run for run in (_baseline(run, wanted) for run in runs) if run is not None]
    with_baseline = len(baselines) == len(runs)
    thin = all((run.folder / THIN).is_dir() for run in runs)
    folders: dict[str, list[Path]] = {THICK: [run.folder / THICK for run in baselines], THIN: []}
    name = baselines[0].trainer if with_baseline else None
    titles: dict[str, str | None] = {THICK: name, THIN: name}
    if thin and with_baseline:
        factor = _factor(plans, wanted.configuration)
        folders[THIN], how = _thin_baseline(baselines, plans, dataset_json, factor=factor, scratch=scratch)
        titles[THIN] = f"{titles[THIN]}{how}"

    def summary(kind: str, labels: Path) -> Mapping[str, Any] | None:
        if not labels.is_dir():
            return None
        title, methods = titles[kind], {wanted.trainer: [run.folder / kind for run in runs]}
        return score(labels, methods if title is None else {title: folders[kind], **methods}, dataset_json)

    on_acquired = summary(THICK, raw / "labelsTr")
    on_thin = summary(THIN, raw / "labelsTrHR") if thin else None
    bases: dict[str, Sequence[Path | None]] = {
        kind: folders[kind] if with_baseline and folders[kind] else [None] * len(runs) for kind in (THICK, THIN)
    }
    cases = [
        _case(run, name, raw, ending, thin=thin, baselines={kind: bases[kind][number] for kind in bases})
        for number, run in enumerate(runs)
        for name in _names(run.folder / THICK, ending)
    ]
    return replace(
        material,
        cases=cases,
        baseline=titles[THICK if on_thin is None else THIN],
        main_summary=on_thin if thin else on_acquired,
        acquired_summary=on_acquired if thin else None,
        notes=_notes(runs, thin=thin, known=on_thin is not None),
    )


def _names(folder: Path, ending: str) -> list[str]:
    return [file.name.removesuffix(ending) for file in image_files(folder, ending)]


def _case(
    run: FoldRun, name: str, raw: Path, ending: str, *, thin: bool, baselines: Mapping[str, Path | None]
) -> CaseFiles:
    file = f"{name}{ending}"
    scan = existing(raw / "imagesTr", f"{name}_0000{ending}")
    acquired = replace(
        grid_files(run.folder / THICK, name, ending, scan),
        reference=existing(raw / "labelsTr", file),
        baseline=existing(baselines[THICK], file),
    )
    if not thin:
        return CaseFiles(name, acquired, fold=str(run.fold))
    main = replace(
        grid_files(run.folder / THIN, name, ending, existing(raw / "imagesTrHR", f"{name}_0000{ending}") or scan),
        reference=existing(raw / "labelsTrHR", file),
        baseline=existing(baselines[THIN], file),
    )
    return CaseFiles(name, main, acquired, fold=str(run.fold))


def _baseline(run: FoldRun, wanted: WantedFolds) -> FoldRun | None:
    """The run to compare with, None if there is none.

    Raises:
        FileNotFoundError: the user named one that has no validation.
    """
    if wanted.baseline is not None:
        named = run.sibling(wanted.baseline)
        if not (named.folder / THICK).is_dir():
            raise FileNotFoundError(
                f"{named.folder / THICK} does not exist; run: {named.command}, or leave out -baseline"
            )
        return named
    found = None if run.trainer.startswith(BASELINE.trainer) else run.finished_sibling(BASELINE.trainer)
    return found if found is not None and (found.folder / THICK).is_dir() else None


def _thin_baseline(
    runs: Sequence[FoldRun],
    plans: WholeFilesPlansManager,
    dataset_json: Mapping[str, Any],
    *,
    factor: int,
    scratch: Path,
) -> tuple[list[Path], str]:
    """The baseline's thin labels of each fold, its own or interpolated, and how they came about."""
    own = [run.folder / THIN for run in runs]
    if all(folder.is_dir() for folder in own):
        return own, ""
    ending = dataset_json["file_ending"]
    predictions = [(run.folder / THICK, name) for run in runs for name in _names(run.folder / THICK, ending)]
    has_probabilities = all((folder / f"{name}.npz").is_file() for folder, name in predictions)
    method = "logits" if has_probabilities else "signed_distance"
    targets = []
    for run in runs:
        targets.append(scratch / f"baseline_fold_{run.fold}")
        upsample_folder(
            run.folder / THICK,
            targets[-1],
            method=method,
            factor=factor,
            axis=int(plans.transpose_forward[0]),
            reader=plans.image_reader_writer_class(),
            label_manager=plans.get_label_manager(dict(dataset_json)),
            dataset_json=dataset_json,
        )
    return targets, f", {METHODS[method]}"


def _factor(plans: PlansManager, configuration: str) -> int:
    return load_config(plans.get_configuration(configuration).configuration, purpose="prediction").factor


def _stage_1(runs: Sequence[FoldRun]) -> list[tuple[str, Stage1]]:
    found = []
    for run in runs:
        own = run if run.trainer.startswith(_STAGE_1) else SELF_SR.find(run)
        report = None if own is None else Stage1.read(own.folder)
        if own is not None and report is not None:
            found.append((f"{own.trainer}, fold {own.fold}", report))
    return found


def _trainings(runs: Sequence[FoldRun], wanted: WantedFolds) -> list[tuple[str, TrainingLog]]:
    """The model's training first, then those it builds on, of every fold."""
    found = []
    for run in runs:
        others = [] if run.trainer.startswith(_STAGE_1) else [SELF_SR.find(run), _baseline(run, wanted)]
        for training in (run, *others):
            if training is not None:
                log = read_logs(training.folder)
                if log.number_of_epochs:
                    found.append((f"{training.trainer}, fold {training.fold}", log))
    return found


def _facts(wanted: WantedFolds, runs: Sequence[FoldRun], plans: PlansManager) -> dict[str, str]:
    log = read_logs(runs[0].folder)
    spacing = plans.get_configuration(wanted.configuration).spacing
    facts = {
        "dataset": runs[0].dataset,
        "trainer": wanted.trainer,
        "plans": f"{wanted.plans}, {wanted.configuration}",
        "folds": ", ".join(str(run.fold) for run in runs),
        "planned voxels": describe_spacing(spacing),
    }
    if any((run.folder / THIN).is_dir() for run in runs):
        facts["r (thin slices for each thick one)"] = str(_factor(plans, wanted.configuration))
    if log.ended is not None:
        facts["trained"] = f"{log.number_of_epochs} epochs in {log.duration}, until {log.ended:%Y-%m-%d}"
    if log.start:
        facts["start"] = log.start
    return facts


def _notes(runs: Sequence[FoldRun], *, thin: bool, known: bool) -> list[str]:
    unfinished = [f"fold {run.fold}" for run in runs if not run.is_finished]
    notes = [f"no final checkpoint: {listed(unfinished)}"] if unfinished else []
    if thin and not known:
        notes.append(
            "The true thin slices are not known, so scores are those of the acquired slices. `rehrseg simulate` makes "
            "a dataset where they are."
        )
    return notes
