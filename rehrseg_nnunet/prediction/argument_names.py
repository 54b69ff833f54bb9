"""Messages that name options of `rehrseg predict` name the arguments of the functions for Python instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {
    "-tr, -p and -c": "wanted",
    "--grid": "grid",
    "--hr_from": "hr_from",
    "-m": "path",
    "-o": "output",
    "-f": "folds",
    "-chk": "checkpoint",
    "-tr": "wanted.trainer",
    "-p": "wanted.plans",
    "-c": "wanted.configuration",
}
_OPTION = re.compile(rf"(?<!\S)({'|'.join(map(re.escape, ARGUMENTS))})(?![\w/-])")


@contextmanager
def python_names() -> Iterator[None]:
    """Let errors speak of arguments.

    Example:
        >>> with python_names():
        ...     raise ValueError("-f must be numbers or all, got x")
        Traceback (most recent call last):
        ValueError: folds must be numbers or all, got x
    """
    try:
        yield
    except (ValueError, OSError, NotImplementedError) as error:
        if len(error.args) == 1:
            error.args = (_OPTION.sub(lambda found: ARGUMENTS[found[1]], str(error)),)
        raise
