import pytest
from report_cases import write_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Scans, predictions and references, see `report_cases.write_folders`."""
    base = tmp_path_factory.mktemp("predictions")
    write_folders(base)
    return base
