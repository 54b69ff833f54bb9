"""Results as JSON lines: each is on the disk before the next step begins, so whatever finishes counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


def add_record(file: Path, record: dict[str, Any]) -> None:
    """Append one record, by one write: processes that append at the same time do not mix their lines."""
    line = f"{json.dumps(record, default=float)}\n".encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_records(file: Path) -> list[dict[str, Any]]:
    """All whole records, in order; a last line that a kill has cut off is left out."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines if line]
