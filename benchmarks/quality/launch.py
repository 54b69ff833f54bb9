"""`nnUNetv2_train` from a seed: `python -m benchmarks.quality.launch SEED PRECISION SECONDS <its arguments>`.

The seed fixes what is drawn in the training process: initial weights, and with `nnUNet_n_proc_DA=0` the data too. In
the processes that nnU-Net starts for its data numpy draws anew, so patches differ from run to run.

PRECISION "bfloat16" runs the networks' layers in bfloat16, weights, losses and optimiser staying in float32. nnU-Net
does so (in float16) on GPUs only; with bfloat16 instructions a CPU took 0.6 of the time for a step of the preset
`cpu`'s U-Net. In "float32" 3D weights are laid out channels last: the same convolutions, which oneDNN computes faster,
a step of that U-Net in 0.8 of the time on a CPU without AVX-512.

SECONDS is the file for what the step "train" takes. It is written with every checkpoint, so that after a kill it holds
the time of what is kept: the epochs that a resumed training repeats count once.
"""

from __future__ import annotations

import atexit
import os
import random
import resource
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils._pytree import tree_map

from benchmarks.quality.clock import Clock

PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Seed, choose the precision, then nnU-Net's command."""
    seed, precision = int(sys.argv.pop(1)), sys.argv.pop(1)
    seconds = Path(sys.argv.pop(1))
    if not alone(seconds.with_suffix(".lock")):
        sys.exit(f"error: another process still trains what {seconds} is of; wait for it or end it")
    measure(Clock(seconds, "train"))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what nnU-Net draws from)
    torch.manual_seed(seed)
    if precision == "bfloat16":
        run_networks_in_bfloat16()
    else:
        lay_networks_channels_last()
    keep_threads()
    run_training_entry()


def alone(file: Path) -> bool:
    """Whether no other process holds the lock, which this one then has to its end: a training outlives its parent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        FileLock(file, timeout=0, is_singleton=True).acquire()
    except Timeout:
        return False
    return True


def keep_threads() -> None:
    """Let PyTorch have as many threads as OMP_NUM_THREADS says, if it does: on a CPU nnU-Net would take all cores."""
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
        torch.set_num_threads = lambda _: None


def measure(clock: Clock) -> None:
    """From now on every checkpoint, and the end of this process, writes down the CPU seconds until then."""
    save_checkpoint = nnUNetTrainer.save_checkpoint

    @wraps(save_checkpoint)  # with its signature, which this package's trainers check
    def save_checkpoint_and_seconds(trainer: nnUNetTrainer, filename: str) -> None:
        save_checkpoint(trainer, filename)
        clock.save(cpu_seconds())

    nnUNetTrainer.save_checkpoint = save_checkpoint_and_seconds
    atexit.register(lambda: clock.save(cpu_seconds()))


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_networks_in_bfloat16() -> None:
    """From now on the network of every trainer that is initialised computes in bfloat16 and returns float32."""
    initialize = nnUNetTrainer.initialize

    @wraps(initialize)
    def initialize_in_bfloat16(trainer: nnUNetTrainer) -> None:
        initialize(trainer)
        forward, device = trainer.network.forward, trainer.device.type

        def in_bfloat16(*inputs: torch.Tensor) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                outputs = forward(*inputs)
            return tree_map(_to_float32, outputs)

        trainer.network.forward = in_bfloat16

    nnUNetTrainer.initialize = initialize_in_bfloat16


def lay_networks_channels_last() -> None:
    """From now on the 3D weights of every trainer that is initialised are channels last, and so its convolutions."""
    initialize = nnUNetTrainer.initialize

    @wraps(initialize)
    def initialize_channels_last(trainer: nnUNetTrainer) -> None:
        initialize(trainer)
        for parameter in trainer.network.parameters():
            if parameter.dim() == 5:  # a network can have 2D ones besides, which have no such layout
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)

    nnUNetTrainer.initialize = initialize_channels_last


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


if __name__ == "__main__":
    main()
