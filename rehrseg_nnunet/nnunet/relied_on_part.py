"""One row of the table of what this package relies on: see `Part`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Something of another package that this one relies on; several names in one string are separated by spaces.

    Attributes:
        owner: "module" or "module:Class".
        names: functions, methods, properties, or attributes that the class's own methods set.
        use: what for, in messages: "used for ...".
        first: the first parameters of each, where they are passed by position.
        keywords: further parameters of each, passed by name.
        exact: all parameters of each, where this package puts a method in its place that takes these and no others.
    """

    owner: str
    names: str
    use: str
    first: str = ""
    keywords: str = ""
    exact: str | None = None
