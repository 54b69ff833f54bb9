"""dataset.json and plans as every command reads them: what is wrong with a file is one line that names it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

REQUIRED_KEYS = ("channel_names", "labels", "file_ending")
PREPROCESS_FIRST = "run nnUNetv2_plan_and_preprocess for this dataset first"
CONVERT = "convert the dataset with nnUNetv2_convert_old_nnUNet_dataset or nnUNetv2_convert_MSD_dataset"


def read_json(file: Path, *, remedy: str) -> dict[str, Any]:
    """Read a JSON file that nnU-Net reads too.

    Args:
        file: dataset.json or plans.
        remedy: what to do where there is no such file, the end of the message.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has a byte order mark, is not UTF-8, is not JSON (the message has the place) or no object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {remedy}")
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            f"{file} must not begin with a byte order mark, which nnU-Net cannot read; save it as UTF-8 without one"
        )
    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=partial(_once, file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be UTF-8, got {error.reason} at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{file} must be JSON, got a mistake at {place}: {error.msg}; mend it there") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{file} must hold a JSON object, got a {type(parsed).__name__}")
    return parsed


def read_plans(file: Path, *, remedy: str) -> dict[str, Any]:
    """Read nnU-Net's plans.

    Args:
        file: plans.
        remedy: the end of the message.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it has no configurations, or as for `read_json`.
    """
    content = read_json(file, remedy=remedy)
    found = content.get("configurations")
    if not isinstance(found, Mapping) or not all(
        isinstance(configuration, Mapping) for configuration in found.values()
    ):
        raise ValueError(f"{file} must be nnU-Net plans, got no configurations in it; {remedy}")
    return content


def _once(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key with several values the last one would count, in nnU-Net too."""
    parsed = dict(pairs)
    lost = sorted({key for key, value in pairs if parsed[key] != value})
    if lost:
        raise ValueError(f"{file} must have every key once, got other values under the same key {', '.join(lost)}")
    return parsed


def read_dataset_json(file: Path, *, required: Sequence[str] = REQUIRED_KEYS) -> dict[str, Any]:
    """Read the dataset.json of nnU-Net 2.

    Args:
        file: dataset.json.
        required: keys that must be there.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is of nnU-Net 1, lacks a key, or as for `read_json`.
    """
    content = read_json(file, remedy=f"{file.parent.name} is no nnU-Net dataset without it")
    check_keys(content, required=required, source=str(file))
    return content


def check_keys(content: Mapping[str, Any], *, required: Sequence[str], source: str = "dataset.json") -> None:
    """Refuse a dataset.json of nnU-Net 1, or one that lacks keys or has values of another kind.

    Args:
        content: of dataset.json.
        required: keys that must be there.
        source: the file, for the message.

    Raises:
        ValueError: as above; the message names keys and remedy.
    """
    labels = content.get("labels")
    if isinstance(labels, Mapping) and labels and all(str(key).isdigit() for key in labels):
        raise ValueError(
            f"{source} must give labels by name, as in nnU-Net 2, got them by number as in nnU-Net 1; {CONVERT}"
        )
    _check_types(content, source)
    missing = [key for key in required if key not in content]
    if not missing:
        return
    hint = f"; modality is nnU-Net 1's name of channel_names, {CONVERT}" if "modality" in content else ""
    raise ValueError(f"{source} must have the key {', '.join(missing)}, got {', '.join(sorted(content))}{hint}")


def _check_types(content: Mapping[str, Any], source: str) -> None:
    ending = content.get("file_ending", ".")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise ValueError(f"file_ending of {source} must be text that begins with a dot, got {json.dumps(ending)}")
    if not isinstance(content.get("labels", {}), Mapping):
        raise ValueError(f"labels of {source} must give a number for each name, got {json.dumps(content['labels'])}")
    channels = content.get("channel_names", {"0": ""})
    if not isinstance(channels, Mapping) or not channels:
        raise ValueError(f"channel_names of {source} must give a name for each number, got {json.dumps(channels)}")
