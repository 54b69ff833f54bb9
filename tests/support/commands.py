"""Commands in processes of their own that start at once: a server imports nnU-Net and is forked for each of them.

Python takes five to ten seconds of a core to import PyTorch and nnU-Net, longer than most of these commands run.
"""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import warnings
from multiprocessing import reduction

PRELOADED = (
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "rehrseg_nnunet.cli.main",
    "rehrseg_nnunet.cli.predict",
    "rehrseg_nnunet.prediction.api",
    "rehrseg_nnunet.prediction.many_cases",
    "rehrseg_nnunet.surfaces.viewers",
)
REHRSEG = "rehrseg_nnunet.cli.main:main"


class Command:
    """Behaves as `subprocess.Popen` does, as far as tests use that.

    Args:
        function: `module:function`, which takes its arguments from sys.argv, as the commands of packages do.
        arguments: the command's.
        merged: errors go where the output goes.
        output: file for both, in place of a stream.
        session: it leads a session of its own, with the processes that it starts.
        setup: called in the process before the command.
        **variables: environment variables besides this process's.

    Attributes:
        stdout: text stream; None if a file takes it.
        stderr: text stream; None if it is merged.
    """

    def __init__(self, function, *arguments, merged=False, output=None, session=False, setup=None, **variables):
        if output is None:
            pipes = [os.pipe() for _ in range(1 if merged else 2)]
            streams, ends = [os.fdopen(read, "r") for read, _ in pipes], [write for _, write in pipes]
        else:
            streams, ends = [], [os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)]
        self.stdout, self.stderr = (*streams, None, None)[:2]
        how = (function, [str(a) for a in arguments], {**os.environ, **variables}, setup, session)
        self._process = server().Process(target=_run, args=(*how, [_Descriptor(end) for end in ends]))
        self._process.start()
        for end in ends:
            os.close(end)

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def kill(self):
        self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self._process.exitcode

    def communicate(self, timeout=None):
        read = {}
        readers = [
            threading.Thread(target=lambda name, stream: read.update({name: stream.read()}), args=item, daemon=True)
            for item in (("stdout", self.stdout), ("stderr", self.stderr))
            if item[1] is not None
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():  # a process that it has left holds the stream
                raise subprocess.TimeoutExpired(str(self._process), timeout)
        return read["stdout"], read.get("stderr")


def server():
    """Context of multiprocessing whose server imports once what commands need."""
    from nnunetv2.training import nnUNetTrainer

    # nnU-Net imports all of its trainers when it looks for one
    found = pkgutil.walk_packages(nnUNetTrainer.__path__, f"{nnUNetTrainer.__name__}.")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *(module.name for module in found)])
    return context


class _Descriptor:
    """An open file that travels to the process."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate):
    return duplicate.detach()


def _run(function, arguments, variables, setup, session, descriptors):
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(variables)
    if variables.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[-1], 2)
    for number in descriptors:
        os.close(number)
    sys.stdout.reconfigure(line_buffering=True)
    # the commands' own, not the server's, by which every worker would import everything again
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if setup is not None:
        setup()
    module, name = function.split(":")
    sys.argv = [name, *arguments]
    sys.exit(getattr(importlib.import_module(module), name)())
