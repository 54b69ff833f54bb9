"""The documents: links resolve, the README is short; files, commands, trainers and messages that they name exist."""

import ast
import re
import shlex
import unicodedata
from functools import cache
from pathlib import Path

import pytest

from rehrseg_nnunet.cli.main import build_parser

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
PAGES = [README, *sorted((REPOSITORY / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LONGEST_README = 110
MOST_FIGURE_BYTES = 150_000
LENGTH = re.compile(r"_\d+epochs?$")
# symptoms of other programs, and parts of a message that stand in no single string of the code
OTHERS = {
    "Unable to find trainer class",
    "Could not find requested nnunet trainer",
    "Could not find a dataset with the ID",
    "nnUNet_raw is not defined",
    "CUDA out of memory",
    "Found no NVIDIA driver",
    "Torch not compiled with CUDA enabled",
}
VALUE = "\0"


def name_of(page):
    """A page's path, to name the test."""
    return page.relative_to(REPOSITORY).as_posix()


def links(text):
    """Targets of the links of a page that lie in the repository; code blocks hold none."""
    without_blocks = re.sub(r"```.*?```|^(?:    |\t)[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    targets = LINK.findall(without_blocks)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = "".join(c for c in plain if c in " -_" or unicodedata.category(c)[0] in "LN")
        slug = kept.replace(" ", "-")
        count = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{count}" if slug in found else slug)
    return found


def broken(page):
    """Links of a page whose file or heading does not exist."""
    wrong = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        missing_anchor = anchor and file.suffix == ".md" and file.is_file()
        if not file.exists() or (missing_anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    return wrong


def test_links_are_found():
    text = "[a](b.md#c) ![d](e.png) [`f`](g.py) [web](https://x.org) [mail](mailto:a@b.c)\n\n    [no](code.md)\n"
    assert links(text) == ["b.md#c", "e.png", "g.py"]


def test_anchors_are_those_of_github():
    text = "# Start stage 1: `a_b`\n## [Link](x.md) & more\n## Twice\n## Twice\n```\n# no heading\n```\n"
    assert anchors(text) == ["start-stage-1-a_b", "link--more", "twice", "twice-1"]


def test_broken_links_are_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Here\n[a](#here) [b](#there) [c](page.md#here) [d](page.md#gone) [e](none.md) [f](.)\n")
    assert broken(page) == ["#there", "page.md#gone", "none.md"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_resolve(page):
    assert broken(page) == []


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_readme_keeps_the_two_lines_that_install_and_test():
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    assert "pip install -e . && rehrseg demo" in lines
    assert "pip install -e '.[test]' && pytest" in lines


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            targets = links(page.read_text(encoding="utf-8"))
            ahead += [(page.parent / target.partition("#")[0]).resolve() for target in targets]
    assert [name_of(page) for page in PAGES if page not in reached] == []


def equation_files():
    """Files in the tables of docs/explanation/equations.md, with the name of a function or class where one is given."""
    page = REPOSITORY / "docs" / "explanation" / "equations.md"
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            cell = line.rstrip("| ").split("|")[-1]
            files = [target for target in LINK.findall(cell) if target.endswith(".py")]
            names = re.findall(r"`(\w+)`", cell) if files else []
            found += [((page.parent / file).resolve(), names) for file in files]
    return found


def test_equations_name_the_paper_and_smore():
    folders = {file.parent.name for file, _ in equation_files()}
    assert {"slices", "self_sr", "segmentation", "smore", "guided"} <= folders
    text = (REPOSITORY / "docs" / "explanation" / "equations.md").read_text(encoding="utf-8")
    first_column = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| Eq."))
    assert {1, 2, 5, 6, 7, 8, 9, 10, 11} <= {int(number) for number in re.findall(r"\b\d+\b", first_column)}


@pytest.mark.parametrize(("file", "names"), equation_files(), ids=lambda value: getattr(value, "name", None))
def test_files_of_the_equations_exist_and_hold_what_is_named(file, names):
    assert file.is_file()
    code = file.read_text(encoding="utf-8")
    assert [name for name in names if not re.search(rf"^(def|class) {name}\b", code, re.MULTILINE)] == []


@pytest.mark.parametrize("figure", sorted((REPOSITORY / "docs" / "figures").iterdir()), ids=lambda path: path.name)
def test_figures_are_small_and_used(figure):
    assert figure.stat().st_size < MOST_FIGURE_BYTES
    assert any(figure.name in page.read_text(encoding="utf-8") for page in PAGES)


def commands(text):
    """The `rehrseg` commands in a page's code blocks, without comments, "..." and pipes."""
    lines = re.findall(r"^ {4}(?:.*&& )?(rehrseg .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines if "..." not in line]


DOCUMENTED = [(name_of(page), words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "words"), DOCUMENTED, ids=lambda value: " ".join(value)[:60])
def test_documented_commands_are_understood(page, words):
    assert build_parser(words[0]).parse_args(words).command == words[0]


def test_commands_are_documented():
    assert {"predict", "plan", "simulate", "evaluate", "convert-flavr", "demo"} <= {words[0] for _, words in DOCUMENTED}


def trainer_classes():
    """Names of the classes in `trainers/`."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (REPOSITORY / "trainers").glob("*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_trainers_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\b(?:REHRSeg|SelfSR|SMORE|ContinuedBaseline)Trainer(?:_(?!_)\w+?)?(?=__|\b)", text)
    named = {LENGTH.sub("", name) for name in found}
    assert named - trainer_classes() == set()


@cache
def messages():
    """Every string in the code, a line each, with `VALUE` where something is filled in."""
    files = [*(REPOSITORY / "rehrseg_nnunet").rglob("*.py"), *(REPOSITORY / "trainers").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    filled = ["".join(map(constant, node.values)) for node in nodes if isinstance(node, ast.JoinedStr)]
    return "\n".join([*filled, *(constant(node) for node in nodes if isinstance(node, ast.Constant))])


def constant(node):
    """A string of the code, `VALUE` for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else VALUE


def symptoms():
    """The messages in the first column of the troubleshooting page's tables, but for other programs'."""
    page = REPOSITORY / "docs" / "troubleshooting.md"
    cells = [line.split("|")[1] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell) if " " in code]
    return [symptom for symptom in found if symptom not in OTHERS and not symptom.startswith("rehrseg ")]


def test_symptoms_are_found():
    assert len(symptoms()) > 30


@pytest.mark.parametrize("symptom", symptoms())
def test_messages_of_the_troubleshooting_page_are_those_of_the_code(symptom):
    # a number in a message is mostly a value in the code, as "..." is
    words = [re.escape(words.strip()) for words in re.split(r"\.\.\.|\b\d[\d.]*\b", symptom) if words.strip()]
    assert re.search(" ?[^\n]*? ?".join(words), messages()) is not None
