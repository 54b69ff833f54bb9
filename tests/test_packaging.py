"""What setup.cfg says of the package is so: its dependencies, its folders, its files, its version."""

import ast
import configparser
import re
import sys
from importlib.resources import files
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "rehrseg_nnunet"
SETUP = configparser.ConfigParser()
SETUP.read(REPOSITORY / "setup.cfg")
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)(?P<versions>.*)")
EXTRAS = ("surfaces", "slicer")
OTHER_NAMES = {"skimage": "scikit-image", "nrrd": "pynrrd"}


def listed(section, key):
    return [line for line in SETUP[section][key].splitlines() if line and not line.startswith("#")]


def requirements(section, key):
    """Version specifiers by distribution, in the spelling that all index servers agree on."""
    matches = [REQUIREMENT.fullmatch(line) for line in listed(section, key)]
    return {normalised(match["name"]): match["versions"] for match in matches}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield node.module.split(".")[0]


def test_every_imported_package_is_a_requirement_and_the_other_way_round():
    sources = [*PACKAGE.rglob("*.py"), *(REPOSITORY / "trainers").glob("*.py")]
    packages = {package for file in sources for package in imported_packages(file)}
    # most of them are distributed under the name that is imported, but for its spelling
    packages = {OTHER_NAMES.get(package, package) for package in packages - sys.stdlib_module_names}
    imported = {normalised(package) for package in packages - {"rehrseg_nnunet"}}
    assert {"torch", "numpy", "simpleitk"} <= imported
    in_extras = {name for extra in EXTRAS for name in requirements("options.extras_require", extra)}
    assert imported | in_extras == set(requirements("options", "install_requires")) | in_extras
    assert {"trimesh", "scikit-image", "slicerio"} <= imported & in_extras


def test_every_requirement_has_a_lower_bound():
    extras = [requirements("options.extras_require", extra) for extra in EXTRAS]
    for listed_ones in (requirements("options", "install_requires"), *extras):
        for name, versions in listed_ones.items():
            assert versions.startswith(">="), name


def test_tests_install_what_they_test():
    assert f"rehrseg-nnunet[{','.join(EXTRAS)}]" in listed("options.extras_require", "test")


@pytest.mark.parametrize("package", ["trimesh", "skimage", "slicerio", "nrrd", "lxml", "networkx"])
def test_packages_of_extras_are_imported_when_they_are_used(package):
    """Without the extra everything else must work."""
    for file in PACKAGE.rglob("*.py"):
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [alias.name for node in top for alias in node.names]
        modules = [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        assert package not in {name.split(".")[0] for name in (*names, *modules)}, file


def test_no_python_is_too_new():
    assert SETUP["options"]["python_requires"] == ">=3.10"


def test_every_folder_is_packaged():
    folders = {
        f"rehrseg_nnunet.{file.parent.relative_to(PACKAGE)}".replace("/", ".")
        for file in PACKAGE.glob("*/**/__init__.py")
    }
    assert len(folders) > 10
    mapped = {"rehrseg_nnunet", "rehrseg_nnunet.plans", "rehrseg_nnunet.trainers"}
    assert set(listed("options", "packages")) == folders | mapped
    directories = dict(line.split(" = ") for line in listed("options", "package_dir"))
    assert directories.keys() == mapped
    for package, directory in directories.items():
        assert (REPOSITORY / directory / "__init__.py").is_file(), package


def test_the_installed_package_has_its_data():
    assert files("rehrseg_nnunet").joinpath("py.typed").is_file()
    presets = {file.name for file in (REPOSITORY / "plans").glob("*.json")}
    installed = {file.name for file in files("rehrseg_nnunet.plans").iterdir() if file.name.endswith(".json")}
    assert installed == presets != set()


@pytest.mark.parametrize("folder", ["data", "templates"])
def test_the_installed_package_has_what_pages_are_made_of(folder):
    listed_ones = {file.name for file in (PACKAGE / "report" / folder).iterdir()}
    installed = {file.name for file in (files("rehrseg_nnunet.report") / folder).iterdir()}
    assert installed == listed_ones != set()


def test_large_files_are_known():
    """The repository holds one, the viewer's program."""
    large = {file.name for file in PACKAGE.rglob("*") if file.is_file() and file.stat().st_size > 500_000}
    assert large == {"niivue-0.69.0.umd.js"}


@pytest.mark.parametrize(
    ("file", "pattern"), [("CITATION.cff", r'^version: "?([\d.]+)"?$'), ("CHANGELOG.md", r"^## ([\d.]+)$")]
)
def test_documents_name_the_version(file, pattern):
    found = re.search(pattern, (REPOSITORY / file).read_text(), re.MULTILINE)
    assert found[1] == SETUP["metadata"]["version"]


def test_hooks_and_tests_check_with_the_same_tools():
    pinned = requirements("options.extras_require", "test")
    hooks = re.findall(r"(ruff|basedpyright)(==[\d.]+)", (REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert "ruff" in dict(hooks)
    assert {tool: pinned[tool] for tool, _ in hooks} == dict(hooks)
