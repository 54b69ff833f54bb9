from pathlib import Path

import pytest
from workspace import workspace


def pytest_addoption(parser):
    parser.addoption(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="isotropic nnU-Net raw dataset with the labels of Hippocampus; tests that can then run on its first "
        "cases instead of phantoms (name tests/scenarios on the command line)",
    )


@pytest.fixture(scope="session")
def source(request):
    """Real dataset to run on, None for phantoms."""
    return request.config.getoption("--source", default=None)


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """nnU-Net folders for the tests of one module, see tests/support/workspace.py."""
    with workspace(tmp_path_factory.mktemp("nnunet")) as folders:
        yield folders
