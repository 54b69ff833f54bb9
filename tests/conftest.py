import os

# Read by nnU-Net when it is imported: spawned pools of one, and no threads that spin while others work.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's own processes take the cores


def pytest_collection_modifyitems(items):
    """Files of slow tests first, so that no process is left with one of them when the others have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
