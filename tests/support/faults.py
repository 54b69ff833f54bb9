"""What goes wrong at a known point of a training.

In a process of its own, `Workspace.start(..., fault="at_step(2, 1, die)")`; in this one, with pytest's monkeypatch:
`at_step(2, 1, interrupt, set_attribute=monkeypatch.setattr)`.
"""

import io
import os
import signal
import time
from functools import wraps
from pathlib import Path

HANGING = "hanging"


def die():
    """As `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    """As ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def hang():
    """Wait to be killed from outside."""
    print(HANGING, flush=True)
    time.sleep(600)


def at_step(epoch, step, then, *, set_attribute=setattr):
    """Before a training step; epochs and steps count from 0."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock, taken = nnUNetTrainer.train_step, []

    def train_step(self, batch):
        taken.append(self.current_epoch)
        if taken.count(epoch) == step + 1:
            then()
        return stock(self, batch)

    set_attribute(nnUNetTrainer, "train_step", train_step)


def in_export(cases, then, *, set_attribute=setattr):
    """In the pseudo-HR export after some cases, with the next one half written."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    stock, begun = nnUNetDatasetBlosc2.save_case, []

    @wraps(stock)
    def save_case(data, seg, properties, file, **kwargs):
        stock(data, seg, properties, file, **kwargs)
        begun.append(file)
        if len(begun) == cases + 1:
            _cut(Path(f"{file}.b2nd"))
            then()

    set_attribute(nnUNetDatasetBlosc2, "save_case", staticmethod(save_case))


def in_checkpoint(name, number, then, *, set_attribute=setattr):
    """While a checkpoint of that name is written for the n-th time (from 0), with half of it on the disk."""
    import torch

    stock, begun = torch.save, []

    def save(content, file, *args, **kwargs):
        if Path(file).name.startswith(name):
            begun.append(file)
            if len(begun) == number + 1:
                memory = io.BytesIO()
                stock(content, memory)
                Path(file).write_bytes(memory.getvalue()[: len(memory.getvalue()) // 2])
                then()
        return stock(content, file, *args, **kwargs)

    set_attribute(torch, "save", save)


def _cut(file):
    with file.open("rb+") as stream:
        stream.truncate(file.stat().st_size // 2)
