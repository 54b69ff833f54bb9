"""Imports point one way: a module imports from its own layer or from those below."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LAYERS = [
    {"config", "geometry", "grids", "metrics", "phantom", "presets", "resampling", "safe_files", "schedules",
     "shape_interpolation", "slice_profile", "training_lengths", "plans"},
    {"networks", "losses", "data"},
    {"inference", "checkpoints", "runs", "training_start"},
    {"evaluation", "restoration_training"},
    {"cli"},
    {"trainers"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(file):
    """First name below `rehrseg_nnunet` of every import, wherever in the file it is."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rehrseg_nnunet"):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("rehrseg_nnunet.")]
            yield from (name.split(".")[1] for name in names)


def test_imports_point_one_way():
    package = REPOSITORY / "rehrseg_nnunet"
    files = [(file, file.relative_to(package).parts[0].removesuffix(".py")) for file in package.rglob("*.py")]
    files += [(file, "trainers") for file in (REPOSITORY / "trainers").glob("*.py")]
    files = [(file, layer) for file, layer in files if layer != "__init__"]
    assert len(files) > 50
    upwards = [
        f"{file.relative_to(REPOSITORY)} imports {name}"
        for file, layer in files
        for name in imported(file)
        if LEVEL[name] > LEVEL[layer]
    ]
    assert upwards == []


def test_files_are_short():
    lengths = {str(file): len(file.read_text().splitlines()) for file in REPOSITORY.rglob("rehrseg_nnunet/**/*.py")}
    assert {file: length for file, length in lengths.items() if length > 400} == {}
