"""Imports point one way: a folder imports from itself and from those below it, without exception."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "rehrseg_nnunet"
# from top to bottom; plans holds presets and no code
ORDER = [
    "trainers",
    "cli",
    "report",
    "prediction",
    "segmentation",
    "self_sr",
    "smore",
    "guided",
    "restoration",
    "surfaces",
    "evaluation",
    "cases",
    "nnunet",
    "config",
    "slices",
    "plans",
]
HEIGHT = {folder: -depth for depth, folder in enumerate(ORDER)}


def imported_folders(file):
    """First name below `rehrseg_nnunet` of every import, wherever in the file it is."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rehrseg_nnunet":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("rehrseg_nnunet.")]
            yield from (name.split(".")[1] for name in names)


def modules():
    """Every module of the package and its folder."""
    files = [(file, file.relative_to(PACKAGE).parts[0]) for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE]
    return [*files, *((file, "trainers") for file in (REPOSITORY / "trainers").glob("*.py"))]


def test_imports_point_one_way():
    files = modules()
    assert len(files) > 50
    upwards = [
        f"{file.relative_to(REPOSITORY)} imports {folder}"
        for file, own in files
        for folder in imported_folders(file)
        if HEIGHT[folder] > HEIGHT[own]
    ]
    assert upwards == []


def test_the_two_methods_do_not_import_each_other():
    """REHRSeg with its SMORE, and guidance: either can be read, and dropped, alone."""
    rehrseg = {"self_sr", "segmentation", "smore"}
    for file, own in modules():
        others = {"guided"} if own in rehrseg else rehrseg if own == "guided" else set()
        assert not others & set(imported_folders(file)), file


def test_every_module_has_a_folder():
    assert [file.name for file in PACKAGE.glob("*.py")] == ["__init__.py"]


def test_files_are_short():
    lengths = {str(file): len(file.read_text().splitlines()) for file, _ in modules()}
    assert {file: length for file, length in lengths.items() if length > 400} == {}
