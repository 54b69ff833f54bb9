"""What nnU-Net's text logs of a training say: values of every epoch, losses by term, warnings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rehrseg_nnunet.prediction.manifest import without_folders

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)?: (.*?) ?$")
_NUMBER = r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)"
_TERMS = "loss terms of the last step: "
TERM = "loss "  # before the name of a term
_DECIMAL = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|nan")
_NAMED = re.compile(rf"([a-z_]+) ({_NUMBER})")


@dataclass
class TrainingLog:
    """A training, resumed or not.

    Attributes:
        epochs: value by epoch of each quantity: "train loss", "val loss", "pseudo Dice", "learning rate", "seconds",
            terms of the loss ("loss lr") and what trainers of stage 1 add ("psnr").
        warnings: lines that begin with WARNING, without folders.
        start: what the training started from, without folders; empty where the log does not say.
        began: first line.
        ended: last line.
    """

    epochs: dict[str, dict[int, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    start: str = ""
    began: datetime | None = None
    ended: datetime | None = None

    @property
    def number_of_epochs(self) -> int:
        """That were finished."""
        return len(self.epochs.get("seconds", {}))

    @property
    def duration(self) -> str:
        """Time in epochs."""
        minutes = sum(self.epochs.get("seconds", {}).values()) / 60
        return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"

    def series(self, quantity: str) -> tuple[list[int], list[float]]:
        """Epochs and values of a quantity, in order."""
        values = sorted(self.epochs.get(quantity, {}).items())
        return [epoch for epoch, _ in values], [value for _, value in values]

    @property
    def terms(self) -> list[str]:
        """Quantities that are terms of the loss."""
        return [name for name in self.epochs if name.startswith(TERM)]


def read_logs(folder: Path) -> TrainingLog:
    """All logs of a fold's folder; of an epoch that was repeated the last one counts."""
    log = TrainingLog()
    results = f"{folder.absolute().parents[2]}{os.sep}"  # may hold spaces, so `without_folders` may not find its end
    for file in sorted(folder.glob("training_log_*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace").replace(results, "")
        _read(log, text.splitlines())
    return log


def _read(log: TrainingLog, lines: Iterable[str]) -> None:
    epoch = None
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        time, text = datetime.fromisoformat(match[1]), match[2]
        log.began, log.ended = log.began or time, time
        if found := re.fullmatch(r"Epoch (\d+)", text):
            epoch = int(found[1])
        elif text.startswith("WARNING"):
            log.warnings.append(without_folders(text.removeprefix("WARNING").lstrip(": ")))
        elif text.startswith("training starts from "):
            log.start = without_folders(text)
        elif text == "Training done.":
            epoch = None
        elif epoch is not None:
            for name, value in _values(text):
                log.epochs.setdefault(name, {})[epoch] = value


_FIXED: dict[str, tuple[str, Callable[[str], list[float]]]] = {
    "train_loss ": ("train loss", lambda rest: [float(rest)]),
    "val_loss ": ("val loss", lambda rest: [float(rest)]),
    "Current learning rate: ": ("learning rate", lambda rest: [float(rest)]),
    "Epoch time: ": ("seconds", lambda rest: [float(rest.removesuffix(" s"))]),
    "Pseudo dice ": ("pseudo Dice", lambda rest: [float(number) for number in _DECIMAL.findall(rest)]),
}


def _values(text: str) -> list[tuple[str, float]]:
    """Quantities in a line of an epoch."""
    for prefix, (name, parse) in _FIXED.items():
        if text.startswith(prefix):
            defined = [value for value in parse(text.removeprefix(prefix)) if value == value]
            return [(name, sum(defined) / len(defined))] if defined else []
    rest = text.removeprefix(_TERMS)
    if re.fullmatch(rf"{_NAMED.pattern}(, {_NAMED.pattern})*", rest):
        prefix = TERM if text.startswith(_TERMS) else ""
        return [(prefix + name, float(value)) for name, value in _NAMED.findall(rest)]
    return []
