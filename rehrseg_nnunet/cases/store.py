"""The store of derived cases, which a finished network made of a fold's preprocessed ones.

Beside each other in a fold folder lie, for a store called `name`:

    name/         nnU-Net's blosc2 cases, nothing else (its dataset class takes every file inside for a case)
    name.json     the manifest's header: plans, fold, hash of the network's weights, and what else made the cases
    name_cases/   one small json per complete case: the manifest's entries
    name.lock     held while one training (all of its DDP ranks) writes

One entry per file, so that the DDP ranks of a training can write different cases. A case is written into a temporary
folder, its files are moved into place, and its entry is written last: a kill at any time leaves no half case that
counts. An entry names the header it was written under, so entries of other weights never count.

Convention:
    Data (C, D, H, W) float32, labels (1, D, H, W) with nnU-Net's -1 kept, int8, or int16 for labels above 127.
    Properties are the preprocessed case's, with the class locations of the stored labels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from rehrseg_nnunet.cases.case_files import SUFFIXES, class_locations, open_array, save_case
from rehrseg_nnunet.cases.source_files import is_current
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.safe_files import PARTIAL_SUFFIX, exclusive, partial_name, write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2


class CaseManifest(BaseModel):
    """Header of the manifest: what the cases were made from.

    Attributes:
        version: of the folder's format.
        dataset_name: nnU-Net's dataset name.
        plans_name: plans identifier.
        configuration: configuration of the plans.
        fold: fold, or "all".
        trainer: class name; informative, two trainers with the same weights make the same cases.
        weights_sha256: `hash_weights` of the network.
        made_with: everything else that the cases depend on, by name. An export with other values makes them anew; a
            reader compares those that it expects.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = FORMAT_VERSION
    dataset_name: str
    plans_name: str
    configuration: str
    fold: int | Literal["all"]
    trainer: str
    weights_sha256: str
    made_with: dict[str, JsonValue] = {}

    @classmethod
    def of_run(
        cls, run: FoldRun, *, weights_sha256: str, made_with: Mapping[str, JsonValue] | None = None
    ) -> CaseManifest:
        """Header of the cases that a run's network makes."""
        return cls(
            dataset_name=run.dataset,
            plans_name=run.plans,
            configuration=run.configuration,
            fold=run.fold,
            trainer=run.trainer,
            weights_sha256=weights_sha256,
            made_with=dict(made_with or {}),
        )

    def differences(self, expected: CaseManifest) -> list[str]:
        """What makes the cases useless to whoever expects another header, as "field: value, not the expected one"."""
        mine, theirs = (m.model_dump(exclude={"trainer", "made_with"}) for m in (self, expected))
        mine |= {key: self.made_with.get(key) for key in expected.made_with}
        theirs |= expected.made_with
        hints = {"weights_sha256": " (the checkpoint was replaced after the export)"}
        return [
            f"{key} {mine[key]!r}, not {theirs[key]!r}{hints.get(key, '')}" for key in mine if mine[key] != theirs[key]
        ]

    def fingerprint(self) -> str:
        """Hash over everything that the cases depend on."""
        content = self.model_dump(mode="json", exclude={"trainer"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class StoredCase(BaseModel):
    """Entry of one complete case.

    Attributes:
        fingerprint: of the manifest header that the case was written under.
        shape: of the data, (C, D, H, W).
        bytes_by_file: size of each of the case's files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    shape: tuple[int, int, int, int]
    bytes_by_file: dict[str, int]


class CaseStore:
    """The cases of one kind in a fold folder.

    Args:
        fold_folder: nnU-Net's output folder of the fold.
        name: of the folder with the cases, and the first part of the names beside it.
    """

    def __init__(self, fold_folder: str | os.PathLike[str], name: str):
        self.fold_folder = Path(fold_folder)
        self.folder = self.fold_folder / name
        self.manifest_file = self.fold_folder / f"{name}.json"
        self.entries_folder = self.fold_folder / f"{name}_cases"
        self.lock_file = self.fold_folder / f"{name}.lock"
        self.scratch_prefix = f"{name}_tmp_"
        self.manifest: CaseManifest | None = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other trainings from writing; what killed ones left half-written is removed first.

        With several processes of one training, only the first takes it, around everything that the others do.

        Raises:
            RuntimeError: another process is writing.
        """
        with exclusive(self.lock_file, folder=self.fold_folder, wait=False):
            for scratch in self.fold_folder.glob(f"{self.scratch_prefix}*"):
                shutil.rmtree(scratch)
            for partial in (partial_name(self.manifest_file), *self.entries_folder.glob(f"*{PARTIAL_SUFFIX}")):
                partial.unlink(missing_ok=True)
            yield

    def open_or_create(self, manifest: CaseManifest) -> None:
        """Make the store ready for writing cases of `manifest`; complete cases of the same header are kept.

        Cases of another header are deleted (logged). Of several processes of a training one calls this, the others
        `open_created` after a barrier.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entries_folder.mkdir(exist_ok=True)
        self.manifest = manifest
        stale = [i for i in self._entry_identifiers() if self._entry(i) is None]
        if stale:
            logger.warning("%s: discarding %d cases that were made from something else", self.folder, len(stale))
        for identifier in stale:
            self._discard(identifier)
        if self.read_manifest() != manifest:
            write_atomically(self.manifest_file, manifest.model_dump_json(indent=2))

    def complete_cases(self) -> list[str]:
        """Sorted identifiers of the cases that `is_complete`."""
        return sorted(i for i in self._entry_identifiers() if self.is_complete(i))

    def is_complete(self, identifier: str) -> bool:
        """Whether the case was written under this manifest, and its files have their size and can be opened."""
        entry = self._entry(identifier)
        return entry is not None and self._problem(identifier, entry) is None

    def is_current(self, identifier: str, source_folder: str | os.PathLike[str]) -> bool:
        """Whether the case `is_complete` and was made from the preprocessed case as it is now."""
        return self.is_complete(identifier) and self._is_as_new(identifier, source_folder)

    def _is_as_new(self, identifier: str, source_folder: str | os.PathLike[str]) -> bool:
        return is_current(self.folder / f"{identifier}.pkl", source_folder, identifier)

    def open_created(self, manifest: CaseManifest) -> None:
        """Make the store ready for writing where another process of this training has called `open_or_create`."""
        self.manifest = manifest

    def write_case(
        self,
        identifier: str,
        data: np.ndarray,
        labels: np.ndarray,
        properties: Mapping[str, Any],
        planned: PlannedDataset,
    ) -> None:
        """Write one case; it counts once this returns.

        Args:
            identifier: nnU-Net's case identifier.
            data: (C, D, H, W).
            labels: (1, D, H, W), -1 outside nnU-Net's nonzero mask.
            properties: the preprocessed case's.
            planned: gives the label manager, for the class locations, and the patch that is read, for the chunks.

        Raises:
            ValueError: shapes that do not match, values that are not finite, or the store was not opened.
            OSError: the disk did not take all of it.
        """
        fingerprint = self._opened().fingerprint()
        if labels.shape != (1, *data.shape[1:]):
            raise ValueError(f"labels must have shape {(1, *data.shape[1:])}, got {labels.shape}")
        if not np.isfinite(data).all():
            raise ValueError(f"{identifier}: data must be finite, got nan or inf")
        saved = {**properties, "class_locations": class_locations(labels, planned.label_manager)}
        self._entry_file(identifier).unlink(missing_ok=True)
        scratch = self.fold_folder / f"{self.scratch_prefix}{identifier}"
        data = data.astype(np.float32, copy=False)
        patch_size = planned.hr_patch_size
        sizes = save_case(self.folder, identifier, data, labels, saved, patch_size=patch_size, scratch=scratch)
        entry = StoredCase(fingerprint=fingerprint, shape=data.shape, bytes_by_file=sizes)
        write_atomically(self._entry_file(identifier), entry.model_dump_json())

    def verify(
        self,
        identifiers: Iterable[str],
        expected: CaseManifest,
        *,
        remedy: str,
        source_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check that the cases are there, whole, and made from what their reader expects; then the store is open.

        Args:
            identifiers: cases that will be read.
            expected: header that the reader needs; its `trainer` is not compared.
            remedy: what the user has to run, the end of every message.
            source_folder: preprocessed cases that they must have been made from, as they are now; None: not checked.

        Raises:
            FileNotFoundError: manifest or case missing.
            ValueError: unreadable manifest, another header, damaged files, or a case older than its preprocessed one.
        """
        if not self.manifest_file.is_file():
            raise FileNotFoundError(f"{self.manifest_file} does not exist: no cases were written; {remedy}")
        manifest = self.read_manifest()
        if manifest is None:
            raise ValueError(f"{self.manifest_file} is no manifest of cases of version {FORMAT_VERSION}; {remedy}")
        if differences := manifest.differences(expected):
            raise ValueError(f"{self.manifest_file} has {', '.join(differences)}; {remedy}")
        self.manifest = manifest
        for identifier in identifiers:
            entry = self._entry(identifier)
            if entry is None:
                raise FileNotFoundError(f"{self.folder / identifier}.b2nd: the case was not written; {remedy}")
            if problem := self._problem(identifier, entry):
                raise ValueError(f"{problem}; {remedy}")
            if source_folder is not None and not self._is_as_new(identifier, source_folder):
                raise ValueError(
                    f"{self.folder / identifier}.b2nd must be as new as the preprocessed case, which changed since; "
                    f"{remedy}"
                )

    def _problem(self, identifier: str, entry: StoredCase) -> str | None:
        return self._damage(entry) or self._wrong_shape(identifier, entry)

    def _damage(self, entry: StoredCase) -> str | None:
        for name, expected in entry.bytes_by_file.items():
            file = self.folder / name
            if not file.is_file():
                return f"{file} is missing"
            if (found := file.stat().st_size) != expected:
                return f"{file} must have {expected} bytes, got {found}"
        return None

    def _wrong_shape(self, identifier: str, entry: StoredCase) -> str | None:
        for suffix, expected in ((".b2nd", entry.shape), ("_seg.b2nd", (1, *entry.shape[1:]))):
            file = self.folder / (identifier + suffix)
            try:
                found = open_array(file).shape
            except (RuntimeError, ValueError) as error:
                return f"{file} cannot be read ({error})"
            if tuple(found) != expected:
                return f"{file} must have shape {expected}, got {tuple(found)}"
        return None

    def _opened(self) -> CaseManifest:
        if self.manifest is None:
            raise ValueError(f"the store {self.folder} must be opened with open_or_create or verify first")
        return self.manifest

    def _entry_file(self, identifier: str) -> Path:
        return self.entries_folder / f"{identifier}.json"

    def _entry_identifiers(self) -> list[str]:
        return sorted(file.name.removesuffix(".json") for file in self.entries_folder.glob("*.json"))

    def _entry(self, identifier: str) -> StoredCase | None:
        """The case's entry, None if there is none of this manifest."""
        entry = _read_model(StoredCase, self._entry_file(identifier))
        return entry if entry is not None and entry.fingerprint == self._opened().fingerprint() else None

    def read_manifest(self) -> CaseManifest | None:
        """The header on disk, None if there is none or the file is no such thing."""
        return _read_model(CaseManifest, self.manifest_file)

    def _discard(self, identifier: str) -> None:
        self._entry_file(identifier).unlink(missing_ok=True)  # first: what has no entry does not count
        for suffix in SUFFIXES:
            (self.folder / (identifier + suffix)).unlink(missing_ok=True)


def _read_model(model: type[BaseModel], file: Path) -> Any:
    """A json file as a model, None where it is missing or no such thing."""
    try:
        return model.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
