"""The command line itself: subcommands, exit codes, one-line errors."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

import rehrseg_nnunet
from rehrseg_nnunet.cli import main as cli
from rehrseg_nnunet.cli.trainers import VARIABLE, ensure_trainer_path, trainers_folder


def test_every_command_has_a_module_with_options():
    for name in cli.COMMANDS:
        module = importlib.import_module(f"rehrseg_nnunet.cli.{name.replace('-', '_')}")
        assert callable(module.run)
        cli.build_parser(name)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in shown


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rehrseg-nnunet {rehrseg_nnunet.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["segment"], ["trainers", "--fast"], ["simulate", "-d", "1"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: rehrseg" in capsys.readouterr().err


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from rehrseg_nnunet.cli.main import build_parser; build_parser(None).format_help(); "
        "print({'torch', 'nnunetv2', 'SimpleITK'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "error", [ValueError, FileNotFoundError, NotImplementedError, RuntimeError, FileExistsError, PermissionError]
)
def test_bad_input_is_one_line_and_exit_code_1(monkeypatch, capsys, error):
    def run(args):
        raise error("the first\n  and the second line")

    monkeypatch.setattr(cli, "_command_module", lambda _: SimpleNamespace(add_arguments=lambda parser: None, run=run))
    assert cli.main(["trainers"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "rehrseg trainers: error: the first and the second line\n"
    assert shown.out == ""


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command_module", lambda _: SimpleNamespace(add_arguments=lambda parser: None, run=run))
    assert cli.main(["trainers"]) == 130
    assert capsys.readouterr().err == "rehrseg trainers: interrupted\n"


def test_mistakes_in_the_program_are_not_hidden(monkeypatch):
    def run(args):
        raise TypeError("a bug")

    monkeypatch.setattr(cli, "_command_module", lambda _: SimpleNamespace(add_arguments=lambda parser: None, run=run))
    with pytest.raises(TypeError):
        cli.main(["trainers"])


def test_trainers_prints_a_folder_that_nnunet_can_scan(capsys):
    assert cli.main(["trainers"]) == 0
    folder = capsys.readouterr().out.strip()
    assert folder == str(trainers_folder())
    assert {"rehrseg_trainer.py", "rehrseg_self_sr_trainer.py"} <= {file.name for file in trainers_folder().iterdir()}


def test_arguments_come_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rehrseg", "trainers"])
    assert cli.main() == 0
    assert capsys.readouterr().out.strip() == str(trainers_folder())


def test_the_trainers_folder_is_appended_once(monkeypatch):
    import os

    monkeypatch.delenv(VARIABLE, raising=False)
    ensure_trainer_path()
    assert os.environ[VARIABLE] == str(trainers_folder())
    monkeypatch.setenv(VARIABLE, "/mine")
    ensure_trainer_path()
    ensure_trainer_path()
    assert os.environ[VARIABLE].split(os.pathsep) == ["/mine", str(trainers_folder())]


def test_an_interrupt_while_a_command_is_imported_is_one_line(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command_module", interrupt)
    assert cli.main(["simulate", "-d", "1", "-o", "2"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "rehrseg simulate: interrupted\n"
