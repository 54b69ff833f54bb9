"""Pseudo-HR cases on disk: what stage 1 writes and stage 2 trains on.

The cases that SMORE interpolates, and that stage 1 trains on, are stored alike: under another name and without U.

Beside each other in a stage-1 fold folder lie:

    pseudo_hr/         nnU-Net's blosc2 cases, nothing else (its dataset class takes every file inside for a case)
    pseudo_hr.json     the manifest's header: factor, plans, fold, hash of the network weights that made the cases
    pseudo_hr_cases/   one small json per complete case: the manifest's entries
    pseudo_hr.lock     held while one training (all of its DDP ranks) writes

One entry per file, so that the DDP ranks of a training can write different cases. A case is written into a temporary
folder, its files are moved into place, and its entry is written last: a kill at any time leaves no half case that
counts. An entry names the header it was written under, so entries of other weights never count.

Convention:
    Data (C + 1, r*D, H, W) float32: image channels as preprocessed by nnU-Net, U in [0, 1] last. Labels (1, r*D, H, W)
    with nnU-Net's -1 kept, int8, or int16 for labels above 127. Properties are the LR case's, with the class locations
    of the HR labels and `rehrseg_factor`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rehrseg_nnunet.cases.hr_cases import SUFFIXES, hr_class_locations, save_hr_case
from rehrseg_nnunet.cases.source_files import is_current
from rehrseg_nnunet.config.rehrseg import ExportConfig
from rehrseg_nnunet.nnunet.safe_files import PARTIAL_SUFFIX, exclusive, partial_name, write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
HOW_THEY_WERE_MADE = {"trainer", "export", "smore_weights_sha256"}  # what stage 2 need not know


class PseudoHRManifest(BaseModel):
    """Header of the manifest: what the cases were made from.

    Attributes:
        version: format of the folder.
        factor: r.
        dataset_name: nnU-Net's dataset name.
        plans_name: plans identifier.
        configuration: configuration of the plans.
        fold: fold, or "all".
        trainer: stage-1 trainer's class name; informative, two trainers with the same weights make the same cases.
        weights_sha256: `hash_weights` of the stage-1 network.
        export: how the cases were made with it. Stage 2 takes them however they were made; an export with other
            settings makes them anew.
        smore_weights_sha256: of SMORE's network, if `export` takes its images; likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = FORMAT_VERSION
    factor: int = Field(ge=2)
    dataset_name: str
    plans_name: str
    configuration: str
    fold: int | Literal["all"]
    trainer: str
    weights_sha256: str
    export: ExportConfig = ExportConfig()
    smore_weights_sha256: str | None = None

    @classmethod
    def of_trainer(cls, trainer: Any, *, weights_sha256: str) -> PseudoHRManifest:
        """Header of cases that belong to an nnU-Net trainer's fold; the trainer has its block as `config`."""
        return cls(
            factor=trainer.config.factor,
            dataset_name=trainer.plans_manager.dataset_name,
            plans_name=trainer.plans_manager.plans_name,
            configuration=trainer.configuration_name,
            fold=trainer.fold,
            trainer=type(trainer).__name__,
            weights_sha256=weights_sha256,
        )

    def differences(self, other: PseudoHRManifest) -> list[str]:
        """Fields that make cases of `other` unusable, as "field: own value, not other's value"."""
        mine, theirs = (m.model_dump(exclude=HOW_THEY_WERE_MADE) for m in (self, other))
        hints = {"weights_sha256": " (the checkpoint was replaced after the export)"}
        return [
            f"{key} {mine[key]!r}, not {theirs[key]!r}{hints.get(key, '')}" for key in mine if mine[key] != theirs[key]
        ]

    def fingerprint(self) -> str:
        """Hash over everything that the cases depend on."""
        return hashlib.sha256(self.model_dump_json(exclude={"trainer"}).encode()).hexdigest()


class PseudoHRCase(BaseModel):
    """Entry of one complete case.

    Attributes:
        fingerprint: of the manifest header that the case was written under.
        shape: (C + 1, r*D, H, W); without U (C, r*D, H, W).
        bytes_by_file: size of each of the case's files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    shape: tuple[int, int, int, int]
    bytes_by_file: dict[str, int]


class PseudoHRStore:
    """The pseudo-HR cases of one stage-1 fold folder.

    Args:
        fold_folder: nnU-Net's output folder of the fold.
        name: of the folder with the cases, and the first part of the names beside it.
    """

    def __init__(self, fold_folder: str | os.PathLike[str], *, name: str = "pseudo_hr"):
        self.fold_folder = Path(fold_folder)
        self.folder = self.fold_folder / name
        self.manifest_file = self.fold_folder / f"{name}.json"
        self.entries_folder = self.fold_folder / f"{name}_cases"
        self.lock_file = self.fold_folder / f"{name}.lock"
        self.scratch_prefix = f"{name}_tmp_"
        self.manifest: PseudoHRManifest | None = None

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

    def open_or_create(self, manifest: PseudoHRManifest) -> None:
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

    def open_created(self, manifest: PseudoHRManifest) -> None:
        """Make the store ready for writing where another process of this training has called `open_or_create`."""
        self.manifest = manifest

    def write_case(
        self,
        identifier: str,
        image: np.ndarray,
        uncertainty: np.ndarray | None,
        labels: np.ndarray,
        properties: Mapping[str, Any],
        *,
        label_manager: LabelManager,
        hr_patch_size: Sequence[int],
    ) -> None:
        """Write one case; it counts once this returns.

        Args:
            identifier: nnU-Net's case identifier.
            image: (C, r*D, H, W) HR image.
            uncertainty: (r*D, H, W) or (1, r*D, H, W), any finite range; `robust_min_max` is applied. None: the
                case gets no such channel.
            labels: (1, r*D, H, W) HR labels, -1 outside nnU-Net's nonzero mask.
            properties: the LR case's properties.
            label_manager: nnU-Net's, for the class locations.
            hr_patch_size: patch size in HR voxels that will be read, for the chunks.

        Raises:
            ValueError: shapes that do not match, values that are not finite, or the store was not opened.
            OSError: the disk did not take all of it.
        """
        manifest = self._opened()
        _check_shapes(image, uncertainty, labels, manifest.factor)
        parts = [image] if uncertainty is None else [image, uncertainty.reshape(1, *image.shape[1:])]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(
                f"{identifier}: pseudo-HR image and uncertainty must be finite, got nan or inf; "
                "if the log shows losses of nan, train stage 1 again with a smaller learning_rate"
            )
        data = np.concatenate([image, *map(robust_min_max, parts[1:])], dtype=np.float32)
        locations = hr_class_locations(labels, label_manager)
        saved = {**properties, "class_locations": locations, "rehrseg_factor": manifest.factor}
        self._entry_file(identifier).unlink(missing_ok=True)
        scratch = self.fold_folder / f"{self.scratch_prefix}{identifier}"
        sizes = save_hr_case(self.folder, identifier, data, labels, saved, patch_size=hr_patch_size, scratch=scratch)
        entry = PseudoHRCase(fingerprint=manifest.fingerprint(), shape=data.shape, bytes_by_file=sizes)
        write_atomically(self._entry_file(identifier), entry.model_dump_json())

    def verify(
        self,
        identifiers: Iterable[str],
        expected: PseudoHRManifest,
        *,
        remedy: str,
        source_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Check that the cases are there, whole, and made from what stage 2 expects; then the store is open.

        Args:
            identifiers: cases that will be read.
            expected: header that stage 2 needs; its `trainer` is not compared.
            remedy: what the user has to run, the end of every message.
            source_folder: preprocessed cases that they must have been made from, as they are now; None: not checked.

        Raises:
            FileNotFoundError: manifest or case missing.
            ValueError: unreadable manifest, another header, damaged files, or a case older than its preprocessed one.
        """
        if not self.manifest_file.is_file():
            raise FileNotFoundError(f"{self.manifest_file} does not exist: no pseudo-HR cases were written; {remedy}")
        manifest = self.read_manifest()
        if manifest is None:
            raise ValueError(f"{self.manifest_file} is no manifest of pseudo-HR cases; {remedy}")
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

    def _problem(self, identifier: str, entry: PseudoHRCase) -> str | None:
        return self._damage(entry) or self._wrong_shape(identifier, entry)

    def _damage(self, entry: PseudoHRCase) -> str | None:
        for name, expected in entry.bytes_by_file.items():
            file = self.folder / name
            if not file.is_file():
                return f"{file} is missing"
            if (found := file.stat().st_size) != expected:
                return f"{file} must have {expected} bytes, got {found}"
        return None

    def _wrong_shape(self, identifier: str, entry: PseudoHRCase) -> str | None:
        for suffix, expected in ((".b2nd", entry.shape), ("_seg.b2nd", (1, *entry.shape[1:]))):
            file = self.folder / (identifier + suffix)
            try:
                found = blosc2.open(urlpath=str(file), mode="r").shape
            except (RuntimeError, ValueError) as error:
                return f"{file} cannot be read ({error})"
            if tuple(found) != expected:
                return f"{file} must have shape {expected}, got {tuple(found)}"
        return None

    def _opened(self) -> PseudoHRManifest:
        if self.manifest is None:
            raise ValueError(f"the store {self.folder} must be opened with open_or_create or verify first")
        return self.manifest

    def _entry_file(self, identifier: str) -> Path:
        return self.entries_folder / f"{identifier}.json"

    def _entry_identifiers(self) -> list[str]:
        return sorted(file.name.removesuffix(".json") for file in self.entries_folder.glob("*.json"))

    def _entry(self, identifier: str) -> PseudoHRCase | None:
        """The case's entry, None if there is none of this manifest."""
        entry = _read_model(PseudoHRCase, self._entry_file(identifier))
        return entry if entry is not None and entry.fingerprint == self._opened().fingerprint() else None

    def read_manifest(self) -> PseudoHRManifest | None:
        """The header on disk, None if there is none or the file is no such thing."""
        return _read_model(PseudoHRManifest, self.manifest_file)

    def _discard(self, identifier: str) -> None:
        self._entry_file(identifier).unlink(missing_ok=True)  # first: what has no entry does not count
        for suffix in SUFFIXES:
            (self.folder / (identifier + suffix)).unlink(missing_ok=True)


def hash_weights(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of network weights: names, dtypes, shapes and values, whatever their order, device or file.

    Raises:
        ValueError: an entry that is no tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"state_dict must hold tensors only, got {type(tensor).__name__} for {name}")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def robust_min_max(uncertainty: np.ndarray, *, percentiles: tuple[float, float] = (0.5, 99.5)) -> np.ndarray:
    """Scale a map to [0, 1] between two percentiles and clip; a constant map becomes 0 (no voxel is less certain).

    Raises:
        ValueError: values that are not finite.
    """
    if not np.isfinite(uncertainty).all():
        raise ValueError("uncertainty must be finite, got nan or inf")
    low, high = (float(p) for p in np.percentile(uncertainty, percentiles))
    if high <= low:
        return np.zeros(uncertainty.shape, dtype=np.float32)
    return np.clip((uncertainty - low) / (high - low), 0, 1).astype(np.float32)


def _check_shapes(image: np.ndarray, uncertainty: np.ndarray | None, labels: np.ndarray, factor: int) -> None:
    grid = image.shape[1:]
    if uncertainty is not None and uncertainty.shape not in (grid, (1, *grid)):
        raise ValueError(f"uncertainty must have shape {grid}, got {uncertainty.shape}")
    if labels.shape != (1, *grid):
        raise ValueError(f"labels must have shape {(1, *grid)}, got {labels.shape}")
    if grid[0] % factor:
        raise ValueError(f"the number of slices must be a multiple of factor {factor}, got {grid[0]}")


def _read_model(model: type[BaseModel], file: Path) -> Any:
    """A json file as a model, None where it is missing or no such thing."""
    try:
        return model.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
