"""Whether the installed nnU-Net has all that this package relies on (`relied_on.PARTS`), said in one line.

nnU-Net documents commands, not classes. A new release may drop or rename what is overridden, called or read here: a
training would stop with an AttributeError hours later, or a method would be overridden that is never called. What a
failing import names by itself is not checked.

A part that is gone is one line of warning when a trainer or the predictor is imported, and the same line is the error
when one is constructed: nnU-Net imports every trainer file of `nnUNet_extTrainer` in its search for one name, so an
error at import would stop users of unrelated trainers.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import logging
import platform
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any

from rehrseg_nnunet.nnunet.relied_on import PARTS, Part

logger = logging.getLogger(__name__)

# name and release that the tests passed with, by the first part of a module's name
TESTED = {
    "nnunetv2": ("nnunetv2", "2.8.1"),
    "batchgenerators": ("batchgenerators", "0.25.5"),
    "batchgeneratorsv2": ("batchgeneratorsv2", "0.3.6"),
    "acvl_utils": ("acvl-utils", "0.2.6"),
    "dynamic_network_architectures": ("dynamic-network-architectures", "0.4.4"),
    "torch": ("torch", "2.14.1"),
    "multiprocessing": ("Python", "3.11"),
}


class IncompatibleError(RuntimeError):
    """An installed library lacks what this package relies on; the message names it and the remedy."""


def missing_parts() -> list[str]:
    """What is gone or takes other arguments, a phrase each, such as "nnUNetPredictor._x is gone (used for y)"."""
    return [problem for _, problem in _problems()]


def require_compatible() -> None:
    """Check the installed libraries; it takes milliseconds once nnU-Net is imported.

    Raises:
        IncompatibleError: a part is missing; one line with the first, its use and the remedy.
    """
    problems = _problems()
    if problems:
        part, first = problems[0]
        more = f" and {len(problems) - 1} more" if problems[1:] else ""
        raise IncompatibleError(f"{_unsupported(part)}: {first}{more}; {_remedy(part)}")


@cache
def warn_if_incompatible() -> None:
    """Log the line of `require_compatible` as a warning, once in a process."""
    try:
        require_compatible()
    except IncompatibleError as error:
        logger.warning("%s", error)


def _problems() -> list[tuple[Part, str]]:
    return [(part, problem) for part in PARTS for problem in _problems_of(part)]


def _problems_of(part: Part) -> Iterator[str]:
    module, _, class_name = part.owner.partition(":")
    try:
        owner = importlib.import_module(module)
        owner = getattr(owner, class_name) if class_name else owner
    except (ImportError, AttributeError):
        yield f"{part.owner} is gone (used for {part.use})"
        return
    for name in part.names.split():
        shown = f"{class_name or module}.{name}"
        if not _has(owner, name):
            yield f"{shown} is gone (used for {part.use})"
        elif not _takes(owner, name, part):
            yield f"{shown} takes other arguments (used for {part.use})"


def _has(owner: Any, name: str) -> bool:
    """Whether a module or class has a name, or a method of the class sets it on the instance."""
    return hasattr(owner, name) or any(name in _set_attributes(code) for code in _methods(owner, name))


def _methods(owner: Any, name: str) -> Iterator[CodeType]:
    """Code of a class's methods, inherited ones too, that mention a name."""
    for base in inspect.getmro(owner) if inspect.isclass(owner) else ():
        for member in vars(base).values():
            code = getattr(member, "__code__", None)
            if code is not None and name in code.co_names:
                yield code


@cache
def _set_attributes(code: CodeType) -> frozenset[str]:
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR")


def _takes(owner: Any, name: str, part: Part) -> bool:
    """Whether a function takes the arguments that it is given here; one that somebody wrapped takes any."""
    if not part.first and not part.keywords and part.exact is None:
        return True
    parameters = inspect.signature(getattr(owner, name)).parameters.values()
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {p.kind for p in parameters}:
        return True
    names = [p.name for p in parameters if p.name != "self"]
    if part.exact is not None and names != part.exact.split():
        return False
    first = part.first.split()
    return names[: len(first)] == first and set(part.keywords.split()) <= set(names)


def _unsupported(part: Part) -> str:
    name, _ = TESTED[_package(part)]
    own = "rehrseg-nnunet"
    return f"{name} {_installed(name)} is not supported by {own} {_installed(own)}"


def _remedy(part: Part) -> str:
    name, tested = TESTED[_package(part)]
    return f"use Python {tested}" if name == "Python" else f"install {name}=={tested}"


def _package(part: Part) -> str:
    return part.owner.split(":")[0].split(".")[0]


def _installed(name: str) -> str:
    if name == "Python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return "(of unknown version)"
