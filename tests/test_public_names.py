"""The package's own face: which names it has, and that they cost nothing until they are used."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rehrseg_nnunet

TREE = ast.parse(Path(rehrseg_nnunet.__file__).read_text())


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", [name for name in rehrseg_nnunet.__all__ if name != "__version__"])
def test_every_public_name_is_the_documented_object(name):
    found = getattr(rehrseg_nnunet, name)
    assert found.__name__ == name
    assert found.__doc__
    assert not found.__module__.endswith(".trainers")


def test_type_checkers_see_the_same_names_from_the_same_modules():
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name: getattr(rehrseg_nnunet, name).__module__ for name in seen} == seen
    assert {*seen, "__version__"} == set(rehrseg_nnunet.__all__)


def test_the_version_is_the_installed_one():
    assert rehrseg_nnunet.__version__ == version("rehrseg-nnunet")


def test_names_are_imported_when_they_are_used():
    heavy = "{'torch', 'numpy', 'nnunetv2', 'pydantic'} & set(sys.modules)"
    assert run(f"import sys, rehrseg_nnunet; dir(rehrseg_nnunet); print({heavy})") == "set()"
    code = f"import sys; from rehrseg_nnunet import sr_factor; print(sr_factor((4, 1, 1)), {heavy} - {{'numpy'}})"
    assert run(code) == "4 set()"


def test_names_are_listed():
    assert set(rehrseg_nnunet.__all__) <= set(dir(rehrseg_nnunet))


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rehrseg_nnunet' has no attribute 'segment'"):
        rehrseg_nnunet.segment  # noqa: B018
