"""What a step takes, in wall and CPU seconds, over all its attempts."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rehrseg_nnunet.nnunet.safe_files import write_atomically

Seconds = dict[str, dict[str, float]]  # step to {"wall", "cpu"}


class Clock:
    """Adds the seconds of one attempt at a step to those of earlier attempts, in a file of several steps.

    Args:
        file: JSON, see `read_seconds`.
        step: name of the step.
    """

    def __init__(self, file: Path, step: str):
        self.file = file
        self.step = step
        self.before = read_seconds(file).get(step, {"wall": 0.0, "cpu": 0.0})
        self.started = time.perf_counter()

    def save(self, cpu: float) -> None:
        """Write what the step has taken so far; call it as often as wanted.

        Args:
            cpu: CPU seconds of this attempt.
        """
        taken = {"wall": time.perf_counter() - self.started, "cpu": cpu}
        total = {kind: self.before[kind] + value for kind, value in taken.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, json.dumps({**read_seconds(self.file), self.step: total}, indent=2))


def read_seconds(file: Path) -> Seconds:
    """Wall and CPU seconds by step, of the steps that were measured."""
    return json.loads(file.read_text()) if file.is_file() else {}
