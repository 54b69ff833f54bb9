"""docs/results: pages and csv hold the same numbers, and the commands of the pages exist."""

import csv
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.quality.__main__ import _parser
from benchmarks.quality.rows import ROWS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "results").glob("2*.md"))
COLUMNS = ["table", "row", "cases", "n", "folds", "resolution", "metric", "value"]
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.])")


def rows(page):
    with page.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def table_cells(page):
    """Cells of all tables but the first, which describes the study; a line's first cell is its name and left out."""
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE)
    for table in tables[1:]:
        for line in table.splitlines()[2:]:
            yield from re.split(r"(?<!\\)\|", line.strip("|"))[1:]


def commands():
    """Every command of the benchmark that a page shows as a block, with the page's name."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"^    (python -m benchmarks\.quality (?:.*\\\n)*.*)", page.read_text(), re.MULTILINE)
        found += [pytest.param(block.replace("\\\n", " "), id=page.stem) for block in blocks]
    return found


def test_every_page_has_its_csv_and_its_line_in_the_index():
    index = (DOCS / "results" / "README.md").read_text()
    assert len(PAGES) > 8
    assert sorted(page.stem for page in PAGES) == sorted(file.stem for file in (DOCS / "results").glob("*.csv"))
    assert [page.name for page in PAGES if page.name not in index] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_and_csv_have_the_same_numbers(page):
    entries = rows(page)
    for entry in entries:
        assert list(entry) == COLUMNS
        assert all(entry[key] for key in ("table", "row", "metric", "value"))
    described = " ".join(" ".join((entry["row"], entry["n"], entry["folds"])) for entry in entries)
    in_csv = Counter(entry["value"].lstrip("<+-") for entry in entries)
    in_page = Counter(NUMBER.findall(" ".join(table_cells(page)).replace(",", "")))
    assert in_csv - in_page == Counter()
    assert set(in_page - in_csv) <= set(NUMBER.findall(described.replace(",", "")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_says_where_its_numbers_are_from(page):
    text = page.read_text(encoding="utf-8")
    assert "\nQuestion: " in text
    for field in ("data", "machine", "command", "recorded in", "numbers"):
        assert f"\n| {field} |" in text, field
    assert "python " in text or "not reproducible" in text.lower()


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_pages_exist(command):
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "benchmarks.quality"]
    args = _parser().parse_args(arguments[3:])
    assert set(args.rows or []) <= set(ROWS)


def test_decisions_are_short_and_use_every_result():
    text = (DOCS / "decisions.md").read_text()
    assert len(text.splitlines()) <= 120
    assert [page.name for page in PAGES if f"results/{page.name}" not in text] == []
