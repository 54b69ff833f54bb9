"""The table of what is relied on in nnU-Net: all of it is installed, and nothing private is used that it lacks."""

import ast
import importlib
import inspect
import logging
import os
import pkgutil
import subprocess
import sys
import time
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType

import pytest
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

import rehrseg_nnunet
from rehrseg_nnunet import trainers
from rehrseg_nnunet.nnunet import compatibility
from rehrseg_nnunet.nnunet.compatibility import (
    TESTED,
    IncompatibleError,
    _has,
    missing_parts,
    require_compatible,
    warn_if_incompatible,
)
from rehrseg_nnunet.nnunet.relied_on import PARTS, Part
from rehrseg_nnunet.prediction.configuration import _hr_preprocessor_class
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

FOLDERS = [Path(rehrseg_nnunet.__file__).parent, Path(trainers.__file__).parent]
LINE = (
    r"^nnunetv2 \S+ is not supported by rehrseg-nnunet \S+: nnUNetPredictor\._internal_maybe_mirror_and_predict is "
    r"gone \(used for mirrored HR predictions\); install nnunetv2==\S+$"
)
TABLE = {name for part in PARTS for name in part.names.split()}
METHODS = (FunctionType, staticmethod, classmethod, property, cached_property)
# underscored by agreement, not private: documented by Python
DOCUMENTED = {"_replace"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture
def incompatible(monkeypatch):
    """An nnU-Net without a method that HR prediction overrides."""
    monkeypatch.delattr(nnUNetPredictor, "_internal_maybe_mirror_and_predict")
    warn_if_incompatible.cache_clear()
    yield
    warn_if_incompatible.cache_clear()


def test_the_installed_nnunet_has_everything():
    assert missing_parts() == []
    require_compatible()


def test_the_check_is_quick():
    compatibility._set_attributes.cache_clear()
    started = time.process_time()
    missing_parts()
    assert time.process_time() - started < 0.5  # some 20 ms on an idle machine


def test_what_is_gone_is_one_line_with_use_and_remedy(incompatible):
    with pytest.raises(IncompatibleError, match=LINE):
        require_compatible()


def test_the_line_of_the_import_is_the_error_of_the_construction(incompatible, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in ("plugin_trainer", "predictor"):
            warn_if_incompatible()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    with pytest.raises(IncompatibleError) as by_predictor:
        HRPredictor()
    with pytest.raises(IncompatibleError) as by_trainer:
        REHRSegTrainer({}, "3d_fullres", 0, {})
    assert record.getMessage() == str(by_predictor.value) == str(by_trainer.value)


def test_import_prints_the_line_once_and_other_peoples_trainers_are_found(tmp_path):
    """nnU-Net imports all of our files, which come before theirs."""
    (tmp_path / "other_trainer.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class OtherTrainer(nnUNetTrainer):\n    pass\n"
    )
    code = (
        "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor\n"
        "del nnUNetPredictor._internal_maybe_mirror_and_predict\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('OtherTrainer').__name__)\n"
    )
    folders = {"nnUNet_extTrainer": f"{FOLDERS[1]}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **folders}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "OtherTrainer"
    lines = [line for line in done.stderr.splitlines() if "is not supported by" in line]
    assert len(lines) == 1
    assert "_internal_maybe_mirror_and_predict is gone" in lines[0]


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (Part("nnunetv2.nothing", "x", "y"), "nnunetv2.nothing is gone"),
        (Part("nnunetv2.paths:Nothing", "x", "y"), "nnunetv2.paths:Nothing is gone"),
        (Part("nnunetv2.paths", "nnUNet_nothing", "y"), "nnunetv2.paths.nnUNet_nothing is gone"),
        (
            Part("nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer", "_net", "y"),
            "nnUNetTrainer._net is gone",
        ),
        (
            Part("nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer", "train_step", "y", exact="batch, mask"),
            "nnUNetTrainer.train_step takes other arguments",
        ),
        (
            Part("nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer", "train_step", "y", exact=""),
            "nnUNetTrainer.train_step takes other arguments",
        ),
        (
            Part("nnunetv2.utilities.helpers", "softmax_helper_dim0", "y", keywords="dim"),
            "nnunetv2.utilities.helpers.softmax_helper_dim0 takes other arguments",
        ),
        (
            Part("nnunetv2.inference.export_prediction", "export_prediction_from_logits", "y", first="logits"),
            "nnunetv2.inference.export_prediction.export_prediction_from_logits takes other arguments",
        ),
    ],
)
def test_problems_are_named(monkeypatch, part, problem):
    monkeypatch.setattr(compatibility, "PARTS", (part,))
    assert missing_parts() == [f"{problem} (used for y)"]


def test_attributes_that_a_constructor_sets_are_noticed(monkeypatch):
    part = Part("nnunetv2.training.logging.nnunet_logger:LocalLogger", "my_fantastic_logging", "y")
    monkeypatch.setattr(compatibility, "PARTS", (part,))
    assert missing_parts() == []

    def __init__(self, verbose=False):  # noqa: N807 (a constructor that reads it, but does not set it)
        print(self.my_fantastic_logging)

    for name, member in list(vars(LocalLogger).items()):
        if inspect.isfunction(member):
            monkeypatch.setattr(LocalLogger, name, __init__)
    assert missing_parts() == ["LocalLogger.my_fantastic_logging is gone (used for y)"]


def test_several_problems_are_still_one_line(monkeypatch):
    parts = (
        Part("dynamic_network_architectures.nothing", "x", "y"),
        Part("multiprocessing.pool:Pool", "_nothing _none", "y"),
    )
    monkeypatch.setattr(compatibility, "PARTS", parts)
    with pytest.raises(
        IncompatibleError, match=r"^dynamic-network-architectures .* gone \(used for y\) and 2 more; ins"
    ):
        require_compatible()
    monkeypatch.setattr(compatibility, "PARTS", parts[1:])
    with pytest.raises(IncompatibleError, match=r"^Python 3\.\d+\.\d+ is not .*: Pool\._nothing .*; use Python 3\.11$"):
        require_compatible()


def test_every_part_has_a_remedy_and_stands_once():
    assert {compatibility._package(part) for part in PARTS} == set(TESTED)
    rows = [(part.owner, name) for part in PARTS for name in part.names.split()]
    assert len(rows) == len(set(rows))


def modules():
    """Every module of the package, trainers included, imported."""
    for folder, package in zip(FOLDERS, ("rehrseg_nnunet", "rehrseg_nnunet.trainers"), strict=True):
        for module in pkgutil.walk_packages([str(folder)], f"{package}."):
            yield importlib.import_module(module.name)


def is_own(cls):
    return cls.__module__.startswith("rehrseg_nnunet")


@cache
def derived_classes():
    """Own classes, and those that are made when they are needed, with a base in one of the table's libraries."""
    classes = {member for module in modules() for member in vars(module).values() if inspect.isclass(member)}
    classes |= {_hr_preprocessor_class(DefaultPreprocessor)}
    return [cls for cls in classes if is_own(cls) and foreign_bases(cls)]


def foreign_bases(cls):
    libraries = set(TESTED) - {"torch", "multiprocessing"}
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] in libraries]


def overrides():
    """(own method, foreign base) for every method that stands in another one's place."""
    for cls in derived_classes():
        for own in filter(is_own, cls.__mro__):
            for name, member in vars(own).items():
                if name.startswith("__") or not isinstance(member, METHODS):
                    continue
                yield from ((own, name, base) for base in foreign_bases(cls) if name in vars(base))


def test_the_scan_sees_trainers_mixins_and_the_predictor():
    found = {(own.__name__, name) for own, name, _ in overrides()}
    assert {
        ("REHRSegTrainer", "_build_loss"),
        ("ImageTraining", "_set_batch_size_and_oversample"),
        ("HRPredictor", "_manage_input_and_output_lists"),
        ("HRPatchLoader", "get_bbox"),
        ("HRPreprocessor", "run_case"),
    } <= found


def test_every_private_method_that_is_overridden_is_in_the_table():
    private = {f"{own.__name__}.{name}" for own, name, _ in overrides() if is_private(name) and name not in TABLE}
    assert private == set()


def test_every_method_of_trainers_and_predictor_that_is_overridden_is_in_the_table():
    bases = (nnUNetTrainer, nnUNetPredictor)
    assert {f"{own.__name__}.{name}" for own, name, base in overrides() if base in bases and name not in TABLE} == set()


def test_overriding_methods_take_what_the_overridden_ones_do():
    """An argument that nnU-Net adds to a method is one that it will pass to ours."""
    narrower = []
    for own, name, base in overrides():
        mine, theirs = getattr(own, name), getattr(base, name)
        if not (callable(mine) and callable(theirs)):
            continue
        parameters = inspect.signature(mine, follow_wrapped=False).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        lacking = set(inspect.signature(theirs).parameters) - set(parameters)
        narrower += [f"{own.__name__}.{name}: {sorted(lacking)}"] if lacking else []
    assert narrower == []


@cache
def sources():
    """Syntax tree of every file."""
    return {file: ast.parse(file.read_text()) for folder in FOLDERS for file in folder.rglob("*.py")}


def declarations(tree):
    """Nodes that define nothing when a program runs: those below `if TYPE_CHECKING`, annotations without a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (inner for statement in node.body for inner in ast.walk(statement))
        elif isinstance(node, ast.AnnAssign) and node.value is None:
            yield node.target


@cache
def own_names():
    """Everything that the package defines: functions, classes, attributes that it sets."""
    names = set()
    for tree in sources().values():
        for node in set(ast.walk(tree)) - set(declarations(tree)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def foreign_private_uses(tree, own):
    """Private names that are imported from elsewhere, reached by super(), or used and defined nowhere here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("rehrseg_nnunet"):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            by_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
            if by_super or node.attr not in own:
                yield node.attr


def test_every_private_name_that_is_used_is_in_the_table():
    own = own_names() - TABLE
    unknown = {
        f"{file.name}: {name}"
        for file, tree in sources().items()
        for name in foreign_private_uses(tree, own)
        if name not in TABLE | DOCUMENTED
    }
    assert unknown == set()


def nnunets_classes():
    """Classes of nnU-Net in the table, without modules, whose attributes are mostly PyTorch's."""
    owners = {part.owner.partition(":")[::2] for part in PARTS if part.owner.startswith("nnunetv2.")}
    classes = [getattr(importlib.import_module(module), name) for module, name in owners if name]
    return [cls for cls in classes if not issubclass(cls, nn.Module)]


def test_every_attribute_of_nnunets_objects_that_is_read_is_in_the_table():
    """As far as it can be seen: reached from `self` or `trainer`, and not defined in this package too."""
    own = own_names()
    read = {
        node.attr
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).split(".")[0] in ("self", "trainer")
        and node.attr not in own
        and not node.attr.startswith("__")
    }
    nnunets = {name for name in read if any(_has(cls, name) for cls in nnunets_classes())}
    assert {"print_to_log_file", "is_ddp", "annotated_classes_key", "my_fantastic_logging"} <= nnunets
    assert nnunets - TABLE == set()


@pytest.mark.parametrize(
    "code", ["from nnunetv2.paths import _x", "trainer._x", "super()._own", "self.pool._x.append(1)", "trainer._x()"]
)
def test_the_scan_sees_private_uses(code):
    assert list(foreign_private_uses(ast.parse(code), own={"_own"}))


@pytest.mark.parametrize("code", ["self._own", "self.__dict__", "from rehrseg_nnunet.x import _x", "trainer.x"])
def test_the_scan_leaves_other_names_alone(code):
    assert not list(foreign_private_uses(ast.parse(code), own={"_own"}))


def test_a_wrapped_function_takes_any_arguments(monkeypatch):
    """Other plugins and debuggers replace functions of nnU-Net by wrappers, which pass everything on."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(lambda *args, **kwargs: None))
    assert missing_parts() == []
    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(lambda data, **kwargs: None))
    assert any("save_case takes other arguments" in problem for problem in missing_parts())
