"""The `rehrseg` command: one module per subcommand."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import rehrseg_nnunet

COMMANDS = {
    "trainers": "print the folder that nnUNet_extTrainer must name",
    "plan": "write nnU-Net plans with settings of REHRSeg or guidance",
    "predict": "predict high-resolution segmentations",
    "surfaces": "write surfaces of segmentations: STL, PLY, OBJ, GLB, 3MF",
    "viewers": "write label images with names and colours for 3D Slicer and ITK-SNAP",
    "pair": "make a dataset of scans and better scans of the same subjects",
    "synthesize": "make the better scan that a trained keeper sees in a usual one",
    "simulate-field": "make a dataset with low-field twins of its scans",
    "simulate": "make a thick-slice dataset with known truth from an isotropic one",
    "report": "write an HTML page by which a trained fold or predictions can be judged",
    "evaluate": "compare segmentations or images with a reference",
    "convert-flavr": "turn the published FLAVR checkpoint into -pretrained_weights for SelfSRTrainer",
    "demo": "run everything on a generated phantom, on a CPU, in minutes",
}
ERRORS = (ValueError, OSError, NotImplementedError, RuntimeError)
WRONG_USAGE = 2  # as argparse
INTERRUPTED = 130  # what shells make of a command that Ctrl-C ended


class _Version(argparse.Action):
    """Look the version up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"rehrseg-nnunet {rehrseg_nnunet.__version__}")
        parser.exit()


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Parser of all subcommands; only the chosen one's module is imported (nnU-Net takes seconds to import)."""
    parser = argparse.ArgumentParser(prog="rehrseg", description="High-resolution segmentation from thick-slice MRI.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            _command_module(name).add_arguments(subparser)
    return parser


def _command_module(name: str) -> ModuleType:
    return importlib.import_module(f"rehrseg_nnunet.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input gives one line on stderr and exit status 1, Ctrl-C one line and 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:  # also while nnU-Net is imported
        print(" ".join(("rehrseg", *argv[:1])) + ": interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    parser = build_parser(argv[0] if argv else None)
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(WRONG_USAGE)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rehrseg_nnunet").setLevel(logging.INFO)
    with _files_discarded_quietly():
        try:
            _command_module(args.command).run(args)
        except ERRORS as error:
            print(f"rehrseg {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


@contextmanager
def _files_discarded_quietly() -> Iterator[None]:
    """A file that could not be written fails once more when it is discarded; Python 3.13 prints a traceback of that."""
    former = sys.unraisablehook
    sys.unraisablehook = lambda found: None if isinstance(found.exc_value, OSError) else former(found)
    try:
        yield
    finally:
        sys.unraisablehook = former


if __name__ == "__main__":
    sys.exit(main())
