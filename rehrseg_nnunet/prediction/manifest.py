"""The record of a prediction of many cases: what with, how long, which files, which cases failed and why.

`prediction.json` and, if cases failed, `failures.csv` lie beside the results; calls that share a folder
(`-num_parts 4 -part_id 0`) write `prediction_part0of4.json` and `failures_part0of4.csv` each. Neither holds absolute
paths nor the names of users or machines, so results can be passed on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.prediction.inputs import Failure

_PACKAGES = ("rehrseg-nnunet", "nnunetv2", "torch", "numpy", "SimpleITK", "nibabel")
_ABSOLUTE = re.compile(r"(?<![\w./\\])(?:[A-Za-z]:)?[/\\](?:[^\s,;:'\"()]+[/\\])+")


def model_hash(parameters: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """SHA-256 of the weights of all folds of a model, in their order."""
    digest = hashlib.sha256()
    for weights in parameters:
        digest.update(hash_weights(weights).encode())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """The kind of a device, and which GPU it is."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def without_folders(text: str, files: Sequence[Path] = (), folders: Sequence[Path] = ()) -> str:
    """A message without the folders of the files it names.

    Args:
        text: one line.
        files: that it may name; other absolute paths are found where they hold no spaces.
        folders: of other files that it may name.

    Example:
        >>> without_folders("/home/ada/in/a.nii.gz must be whole", ())
        'a.nii.gz must be whole'
    """
    spelled = {str(path) + os.sep for folder in folders for path in (folder, folder.resolve())}
    for folder in sorted(spelled, key=len, reverse=True):
        text = text.replace(folder, "")
    for file in files:
        text = text.replace(str(file.parent / file.name), file.name).replace(str(file.resolve()), file.name)
    return _ABSOLUTE.sub("", text)


class RunRecord:
    """What a run says of itself; `save` writes it.

    Args:
        folder: of the results.
        part: this call's number among those that share the cases, and how many there are.
        about: model, device and options, as JSON holds them.
        keep: take over what an earlier run of the same part wrote of cases that are there.
        unnamed: folders of files that are read beside the scans; reasons do not name them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        part: tuple[int, int],
        about: Mapping[str, Any],
        keep: bool,
        unnamed: Sequence[Path] = (),
    ) -> None:
        self.folder, self.unnamed = folder, tuple(unnamed)
        suffix = "" if part[1] == 1 else f"_part{part[0]}of{part[1]}"
        self.file, self.failures_file = folder / f"prediction{suffix}.json", folder / f"failures{suffix}.csv"
        self.part, self.about = part, dict(about)
        self.names: list[str] = []
        self.failures: list[Failure] = []
        self._seconds: dict[str, float] = self._earlier() if keep else {}
        self._began, self._started = datetime.now(timezone.utc), perf_counter()

    def _earlier(self) -> dict[str, float]:
        try:
            cases = json.loads(self.file.read_text(encoding="utf-8"))["cases"]
            return {name: float(case["seconds"]) for name, case in cases.items() if case["seconds"] is not None}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # none, or another program's

    def took(self, name: str, seconds: float) -> None:
        """Note how long a case took."""
        self._seconds[name] = round(seconds, 3)

    def fail(self, failure: Failure) -> None:
        """Note a case that has no result."""
        self.failures.append(failure)

    def save(self, *, finished: bool) -> None:
        """Write the files; of failures only if there are any.

        Args:
            finished: the run came to its end.

        Raises:
            OSError: they could not be written.
        """
        write_atomically(self.file, json.dumps(self._content(finished=finished), indent=2) + "\n")
        if self.failures:
            write_atomically(self.failures_file, self._failures_csv())
        else:
            self.failures_file.unlink(missing_ok=True)

    def _content(self, *, finished: bool) -> dict[str, Any]:
        failed = {failure.name for failure in self.failures}
        files = _files_by_case(self.folder, self.names)
        return {
            "versions": {"Python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            **self.about,
            "part": {"id": self.part[0], "of": self.part[1]},
            "started": self._began.isoformat(timespec="seconds"),
            "seconds": round(perf_counter() - self._started, 3),
            "finished": finished,
            "cases": {
                name: {"files": files[name], "seconds": self._seconds.get(name)}
                for name in self.names
                if name in files and name not in failed
            },
            "failures": {failure.name: self._reason(failure) for failure in self.failures},
        }

    def _reason(self, failure: Failure) -> str:
        return without_folders(" ".join(failure.reason.split()), failure.files, self.unnamed)

    def _failures_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("case", "file", "reason"))
        for failure in self.failures:
            writer.writerow((failure.name, " ".join(file.name for file in failure.files), self._reason(failure)))
        return text.getvalue()


def _files_by_case(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Results in a folder by the case that they belong to: the longest name that theirs begins with."""
    cases = set(names)
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        ends = [match.start() for match in re.finditer(r"[._]", path.name)]
        owner = next((path.name[:end] for end in reversed(ends) if path.name[:end] in cases), None)
        if owner is not None and path.is_file():
            found.setdefault(owner, []).append(path.name)
    return found
