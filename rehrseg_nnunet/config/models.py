"""What all blocks of settings share: strict models, where defaults come from, and refusals in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.config import JsonDict

# Where a default comes from. Each block has a paper and released code of its own.
PAPER: JsonDict = {"source": "paper"}
RELEASE: JsonDict = {"source": "released code"}  # the paper does not give the value, or was not at hand
OURS: JsonDict = {"source": "this package"}


class StrictModel(BaseModel):
    """Immutable model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=StrictModel)


def validate_block(block: Mapping[str, Any], model: type[Model], *, name: str) -> Model:
    """Validate a block of settings.

    Raises:
        ValueError: names every refused key by its path below `name`.
    """
    try:
        return model.model_validate(dict(block) if isinstance(block, Mapping) else block)
    except ValidationError as error:
        raise ValueError(describe_errors(error, name)) from None


def describe_errors(error: ValidationError, where: str) -> str:
    """One line for all problems of a validation, each with its key's path below `where`."""
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in (where, *problem["loc"]))
        if problem["type"] == "extra_forbidden":
            problems.append(f"{key}: unknown key")
        elif (
            problem["type"] == "value_error" and "ctx" in problem
        ):  # of the blocks' own validators, which say what they got
            problems.append(f"{key}: {problem['ctx']['error']}")
        else:
            problems.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(problems)
