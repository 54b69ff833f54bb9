import functools
import os
import signal
import sys

import pytest

# Read by nnU-Net when it is imported: spawned pools of one, and no threads that spin while others work.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's own processes take the cores
# A shell's background job ignores ctrl-C, which tests give themselves and their processes.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Files of slow tests first, so that no process is left with one of them when the others have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def _quick_searches():
    """What does not change is found out once.

    nnU-Net asks of every imported module, twice for each search for a trainer, whether it lies in the folder: a fifth
    of a second. And no test loses power, so files need not be on the disk.
    """
    from nnunetv2.utilities import find_class_by_name as search

    stock = search._module_originates_from_path
    below = functools.cache(lambda file, folder: stock(_File(file), folder))

    def quick(module, folder):
        file = getattr(module, "__file__", None)
        return stock(module, folder) if file is None else below(file, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_module_originates_from_path", quick)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class _File:
    """What the search looks at of a module."""

    def __init__(self, file):
        self.__file__ = file


@pytest.fixture(autouse=True)
def _one_thread():
    """Commands that take all cores leave them to the tests that come after."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
