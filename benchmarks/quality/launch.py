"""`nnUNetv2_train` from a seed: `python -m benchmarks.quality.launch SEED PRECISION <arguments of nnUNetv2_train>`.

The seed fixes what is drawn in the training process: initial weights, and with `nnUNet_n_proc_DA=0` the data too. In
the processes that nnU-Net starts for its data numpy draws anew, so patches differ from run to run.

PRECISION "bfloat16" runs the networks' layers in bfloat16, weights, losses and optimiser staying in float32. nnU-Net
does so (in float16) on GPUs only; with bfloat16 instructions a CPU took 0.6 of the time for a step of the preset
`cpu`'s U-Net.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.utils._pytree import tree_map

PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Seed, choose the precision, then nnU-Net's command."""
    seed, precision = int(sys.argv.pop(1)), sys.argv.pop(1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what nnU-Net draws from)
    torch.manual_seed(seed)
    if precision == "bfloat16":
        run_networks_in_bfloat16()
    run_training_entry()


def run_networks_in_bfloat16() -> None:
    """From now on the network of every trainer that is initialised computes in bfloat16 and returns float32."""
    initialize = nnUNetTrainer.initialize

    def initialize_in_bfloat16(trainer: nnUNetTrainer) -> None:
        initialize(trainer)
        forward, device = trainer.network.forward, trainer.device.type

        def in_bfloat16(*inputs: torch.Tensor) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                outputs = forward(*inputs)
            return tree_map(_to_float32, outputs)

        trainer.network.forward = in_bfloat16

    nnUNetTrainer.initialize = initialize_in_bfloat16


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


if __name__ == "__main__":
    main()
