"""docs/reference says what the code says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate_reference import (
    COMMAND,
    FOLDER,
    NOTHING,
    PAPER_AND_RELEASE,
    _groups,
    describe_type,
    pages,
    table,
)
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.rehrseg import RehrsegConfig

REPOSITORY = Path(__file__).parents[1]
ELSEWHERE = {  # nnU-Net's own names, and placeholders
    "CASE.nii.gz",
    "CASE.npz",
    "CASE.pkl",
    "NAME.json",
    "checkpoint_latest.pth",
    "validation/",
}


@pytest.mark.parametrize("name", ["settings.md", "paper.md", "command-line.md", "trainers.md"])
def test_generated_pages_are_current(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], f"docs/reference/{name} is old; run: {COMMAND}"


def test_pages_are_the_same_on_every_machine(tmp_path):
    """Terminal width and nnU-Net's variables, which parsers read their defaults from, do not show."""
    script = f"from docs.generate_reference import pages\nopen({str(tmp_path / 'all')!r}, 'w').write(str(pages()))"
    environment = {**os.environ, "COLUMNS": "40", "nnUNet_npp": "7", "nnUNet_nps": "7", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "all").read_text() == str(pages())


def groups(schema):
    """Every setting's entry in the JSON schema, nested groups left out."""
    for model in (schema, *schema["$defs"].values()):
        for key, entry in model["properties"].items():
            if "$ref" not in entry and "allOf" not in entry:
                yield key, entry


BLOCKS = [(RehrsegConfig, PAPER_AND_RELEASE), (GuidanceConfig, PAPER_AND_RELEASE["guidance"])]


@pytest.mark.parametrize("block", [RehrsegConfig, GuidanceConfig])
def test_every_setting_says_what_it_means_and_where_its_default_comes_from(block):
    entries = list(groups(block.model_json_schema()))
    assert len(entries) > 20
    for key, entry in entries:
        assert entry["description"], key
        assert entry["source"] in ("paper", "released code", "this package"), key


@pytest.mark.parametrize(("block", "comparison"), BLOCKS)
def test_the_comparison_with_the_paper_agrees_with_where_the_settings_say_they_come_from(block, comparison):
    """A setting that is the paper's has the paper's words, and so for the released code; no row is of no setting."""
    sources = {}
    schema = block.model_json_schema()
    for prefix, model in {"": block, **{f"{name}.": model for name, model in _groups(block)}}.items():
        properties = (schema if model is block else schema["$defs"][model.__name__])["properties"]
        sources |= {prefix + key: entry["source"] for key, entry in properties.items() if "source" in entry}
    said = comparison["settings"]
    assert said.keys() <= sources.keys()
    for key, source in sources.items():
        paper, release = said.get(key, (NOTHING, NOTHING))
        assert source != "paper" or paper != NOTHING, key
        assert source != "released code" or release != NOTHING, key


def test_a_changed_help_text_changes_the_page(monkeypatch):
    from rehrseg_nnunet.cli import main

    monkeypatch.setitem(main.COMMANDS, "demo", "another text")
    assert pages()["command-line.md"] != (FOLDER / "command-line.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "integer above 0"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number at least 0, at most 1"),
        ({"anyOf": [{"type": "integer", "minimum": 2}, {"type": "null"}]}, "integer at least 2 or null"),
        ({"enum": ["a", "b"], "type": "string"}, "`a` or `b`"),
        ({"type": "array", "prefixItems": [{"type": "number"}] * 2}, "list of 2: number"),
        ({"type": "array", "items": {"enum": ["x"]}}, "list of `x`"),
    ],
)
def test_types_in_words(entry, text):
    assert describe_type(entry) == text


def test_bars_do_not_split_a_cell():
    assert table(["a"], [["hr|native"]]).splitlines()[-1] == "| hr\\|native |"


def test_the_code_knows_every_file_of_the_page():
    text = (FOLDER / "files.md").read_text(encoding="utf-8")
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    paths = [path for cell in first_cells for path in re.findall(r"`([^`]+)`", cell)]
    names = {re.findall(r"[^/]+/?$", path)[0] for path in paths} - ELSEWHERE
    assert len(names) > 15
    folders = ("rehrseg_nnunet", "trainers")
    source = "".join(file.read_text() for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))
    for name in names:
        for word in re.split(r"[^a-zA-Z]+|HR|CASE|DATASET", name):
            assert len(word) < 3 or word in source, f"files.md names {name}, which no module writes"
