import pytest
from workspace import workspace


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """nnU-Net folders for the tests of one module, see tests/support/workspace.py."""
    with workspace(tmp_path_factory.mktemp("nnunet")) as folders:
        yield folders
