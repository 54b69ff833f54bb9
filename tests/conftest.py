import os

# Read by nnU-Net when it is imported: spawned pools of one, and no threads that spin while others work.
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest's own processes take the cores
