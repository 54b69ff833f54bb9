"""Predict cases one after another or with worker processes, and keep going where a scan cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rehrseg_nnunet.nnunet.safe_files import move_into_place
from rehrseg_nnunet.nnunet.staging_folders import staging_folder, staging_name
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError, UnwrittenFileError
from rehrseg_nnunet.prediction.case_lists import case_endings, is_finished
from rehrseg_nnunet.prediction.export import stems
from rehrseg_nnunet.prediction.image_checks import FAILURE
from rehrseg_nnunet.prediction.inputs import Case, Failure, names_of
from rehrseg_nnunet.prediction.manifest import RunRecord
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.prediction.replaced import check_replaced, replacing
from rehrseg_nnunet.prediction.writers import SurfaceWriter

RECORDS = ("dataset.json", "plans.json", "predict_from_raw_data_args.json")  # nnU-Net's, of a call


class CasesFailedError(RuntimeError):
    """Some cases have no result; the others do."""


@dataclass(frozen=True)
class RunOptions:
    """How cases are predicted.

    Attributes:
        save_probabilities: write them too.
        overwrite: predict cases anew that are there.
        preprocessing: worker processes; 0 for both kinds works in this process.
        export: worker processes.
        previous_stage: folder with the results of a cascade's previous stage.
        keep_going: a scan that cannot be used costs its case alone.
    """

    save_probabilities: bool = False
    overwrite: bool = True
    preprocessing: int = 0
    export: int = 0
    previous_stage: str | None = None
    keep_going: bool = False

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of both of nnU-Net's methods."""
        return {
            "save_probabilities": self.save_probabilities,
            "overwrite": self.overwrite,
            "folder_with_segs_from_prev_stage": self.previous_stage,
        }


def _lists(cases: Sequence[Case], folder: Path, names: Sequence[str]) -> tuple[Any, Any]:
    """Inputs and outputs without ending, as nnU-Net's methods take them."""
    return [list(map(str, case.files)) for case in cases], [str(folder / name) for name in names]


def with_companions(
    predictor: HRPredictor, cases: Sequence[Case], options: RunOptions
) -> tuple[list[Case], list[Failure]]:
    """Cases with all that is needed beside their images, checked before the first one is predicted.

    Args:
        predictor: knows the grids.
        cases: scans.
        options: say where a previous stage's results are, and whether a case that lacks them ends the run.

    Returns:
        Cases that can be tried, and those that cannot.

    Raises:
        FileNotFoundError: no file to take a grid from, or no segmentation of the previous stage.
        ValueError: a cascade without those segmentations, another model with them, or surfaces of several cases that
            would share a file.
    """
    names = [name for case in cases for name in stems(case.name, predictor.grids)]
    for writer in predictor.writers:
        if isinstance(writer, SurfaceWriter):
            writer.check(names, predictor.dataset_json)
    if not options.keep_going:
        predictor.check_cases([case.name for case in cases], options.previous_stage)
        return list(cases), []
    good, failures = [], []
    for case in cases:
        try:
            predictor.check_cases([case.name], options.previous_stage)
            good.append(case)
        except FileNotFoundError as error:
            failures.append(Failure(case.name, case.files, str(error)))
    return good, failures


def is_there(stem: Path, predictor: HRPredictor, options: RunOptions) -> bool:
    """Whether a case has its results already.

    Args:
        stem: their folder and name, without ending.
        predictor: says on which grids and with which ending they are.
        options: say whether probabilities belong to them.
    """
    ending = predictor.dataset_json["file_ending"]
    endings = case_endings(ending, save_probabilities=options.save_probabilities)
    return is_finished(str(stem), predictor.grids, endings)


def check_results(stems_of_cases: Sequence[Path], predictor: HRPredictor, options: RunOptions) -> None:
    """Refuse places where results would replace scans or other files that are no segmentations of the model.

    Args:
        stems_of_cases: folder and name of each case's results, without ending.
        predictor: says on which grids and with which ending they are.
        options: say which of them are written.

    Raises:
        ValueError: names the file.
    """
    ending, reader = predictor.dataset_json["file_ending"], predictor.plans_manager.image_reader_writer_class
    for stem in stems_of_cases:
        if options.overwrite or not is_there(stem, predictor, options):
            for name in stems(str(stem), predictor.grids):
                check_replaced(Path(name + ending), reader, predictor.dataset_json, option="-o")


def predict_case(
    predictor: HRPredictor, case: Case, stem: Path, options: RunOptions, *, is_segmentation: bool = True
) -> list[Path]:
    """Predict one case into files of one name: the segmentation, and what else is asked for.

    Args:
        predictor: a trained model.
        case: a scan.
        stem: folder, which exists, and name of the results, without ending.
        options: how; workers are not used.
        is_segmentation: with which goes what an earlier one left beside it, and not an image.

    Returns:
        The files.

    Raises:
        UnusableImageError: the scan cannot be predicted.
        UnwrittenFileError: the result could not be written.
    """
    with staging_folder(stem.parent / staging_name()) as staged:
        scratch = staged / "results"  # apart from the lock
        scratch.mkdir()
        try:
            predictor.predict_from_files_sequential(*_lists([case], scratch, [case.name]), **options.shared)
            results = [file for file in scratch.iterdir() if file.is_file() and file.name not in RECORDS]
            ending = predictor.dataset_json["file_ending"]
            results = sorted(results, key=lambda file: file.name.endswith(ending))
            targets = [stem.with_name(stem.name + file.name.removeprefix(case.name)) for file in results]
            with ExitStack() as replaced:
                for own in stems(str(stem), predictor.grids) if is_segmentation else ():
                    replaced.enter_context(replacing(Path(own + ending), ending, predictor.dataset_json))
                for file, target in zip(results, targets, strict=True):
                    move_into_place(file, target)
            return sorted(targets)
        except UnwrittenFileError as error:
            raise UnwrittenFileError(str(error).replace(str(scratch / case.name), str(stem))) from error


def predict_cases(
    predictor: HRPredictor, cases: Sequence[Case], folder: Path, options: RunOptions, record: RunRecord
) -> None:
    """Predict cases into a folder.

    Args:
        predictor: a trained model.
        cases: scans, those of this part.
        folder: existing.
        options: how.
        record: what happens is noted there.

    Raises:
        UnusableImageError: a scan cannot be predicted, and `keep_going` is off.
        UnwrittenFileError: a result could not be written.
    """
    if not cases:
        return
    run = _Run(predictor, {case.name: case for case in cases}, record, keep_going=options.keep_going)
    if options.preprocessing == 0:
        for case in cases:
            if not options.overwrite and is_there(folder / case.name, predictor, options):
                continue
            with run.case(case.name):
                predictor.predict_from_files_sequential(*_lists([case], folder, [case.name]), **options.shared)
        return
    with run.watching():
        predictor.predict_from_files(
            *_lists(cases, folder, [case.name for case in cases]),
            **options.shared,
            num_processes_preprocessing=options.preprocessing,
            num_processes_segmentation_export=options.export,
        )


@dataclass
class _Run:
    """Notes what becomes of cases while they are predicted."""

    predictor: HRPredictor
    cases: dict[str, Case]
    record: RunRecord
    keep_going: bool

    def failed(self, name: str, reason: str) -> None:
        """A case has no result.

        Raises:
            UnusableImageError: that ends the run.
        """
        if not self.keep_going:
            raise UnusableImageError(reason)
        self.record.fail(Failure(name, self.cases[name].files, reason))
        print(f"{name} failed: {reason}")

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Predict a case inside."""
        started = perf_counter()
        try:
            yield
        except UnusableImageError as error:
            self.failed(name, str(error))
        else:
            seconds = perf_counter() - started
            self.record.took(name, seconds)
            print(f"{name}: {seconds:.1f} s")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Preprocessed cases pass by here while the predictor works with workers."""
        former = self.predictor.preprocessed
        self.predictor.preprocessed = self._passing
        try:
            yield
        finally:
            self.predictor.preprocessed = former

    def _passing(self, items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for item in items:
            name = Path(item["ofile"]).name
            reason = item["data_properties"].get(FAILURE)
            if reason is not None:
                self.failed(name, reason)
                continue
            yield item
            self.record.took(name, self.predictor.network_seconds)


def raise_if_failed(record: RunRecord) -> None:
    """End a run in which cases failed.

    Raises:
        CasesFailedError: names them and the file with the reasons.
    """
    if record.failures:
        raise CasesFailedError(
            f"{len(record.failures)} of {len(record.names)} cases failed ({names_of(record.failures)}); the reasons "
            f"are in {record.failures_file}; mend the scans and go on with --continue_prediction"
        )
