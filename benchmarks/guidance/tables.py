"""Tables as markdown for a page and as csv in the columns of docs/results."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

COLUMNS = ("table", "row", "cases", "n", "folds", "resolution", "metric", "value")


@dataclass(frozen=True)
class Cell:
    """A number as printed.

    Attributes:
        value: nan prints nothing.
        digits: after the point.
        error: its standard error, nan for none.
        signed: a difference.
        text: what is printed in place of the value, e.g. of a small p.
    """

    value: float
    digits: int
    error: float = math.nan
    signed: bool = False
    text: str = ""

    @property
    def markdown(self) -> str:
        """Value and standard error."""
        if math.isnan(self.value):
            return ""
        return " ± ".join(filter(None, [self.main, self.plus_minus]))

    @property
    def main(self) -> str:
        """The value alone."""
        return self.text or f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"

    @property
    def plus_minus(self) -> str:
        """The standard error alone, "" if there is none."""
        return "" if math.isnan(self.error) else f"{self.error:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: heading of its own on the page.
        columns: titles by metric's name in the csv.
        cases: "validation" or "test".
        n: number of cases.
        rows: cells by title and metric.
    """

    title: str
    columns: Mapping[str, str]
    cases: str
    n: int
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the csv."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def markdown(self) -> str:
        """A table of the columns that say something."""
        shown = [m for m in self.columns if any(m in row and row[m].markdown for row in self.rows.values())]
        lines = [["", *(self.columns[metric] for metric in shown)], ["---"] * (len(shown) + 1)]
        lines += [[title, *(row[m].markdown if m in row else "" for m in shown)] for title, row in self.rows.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def entries(self) -> Iterable[tuple[object, ...]]:
        """Lines of the csv."""
        for title, row in self.rows.items():
            for metric, cell in row.items():
                head = (self.key, title, self.cases, self.n, 0, "")
                if cell.markdown:
                    yield (*head, metric, cell.main)
                if cell.markdown and cell.plus_minus:
                    yield (*head, f"{metric}_standard_error", cell.plus_minus)


def as_markdown(tables: Sequence[Table]) -> str:
    """All tables under their headings."""
    return "\n".join(f"## {table.title}\n\n{table.markdown()}\n" for table in tables)


def as_csv(tables: Sequence[Table]) -> str:
    """All numbers of all tables."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        writer.writerows(table.entries())
    return text.getvalue()


def into_page(page: str, tables: Sequence[Table]) -> str:
    """A page with the numbers of tables that it has already under their headings; new ones go to its end.

    Args:
        page: markdown.
        tables: with other numbers, rows or columns than the page's.
    """
    for table in tables:
        section = re.compile(
            rf"(^## {re.escape(table.title)}\n(?:(?!^## )[^|\n][^\n]*\n|\n)*)(?:\|[^\n]*\n)+", re.MULTILINE
        )
        if section.search(page):
            page = section.sub(lambda found, table=table: f"{found[1]}{table.markdown()}\n", page, count=1)
        else:
            page = f"{page.rstrip()}\n\n{as_markdown([table])}"
    return page
