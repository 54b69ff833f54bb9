"""One of several that train together: `main` of RANK PROCESSES FOLDER PAIRS DATASET PLANS FOLD.

Teacher and keeper of the pairs, and a network of the dataset that it guides, under a gloo group on the CPU;
`FOLDER/RANK.json` says what this process did.
"""

import json
import sys
from pathlib import Path

import torch
from ddp import CPU, join_group
from short_runs import shorten, use_threads
from torch import distributed as dist

from rehrseg_nnunet.nnunet.weights import hash_weights


def build(name, dataset, plans, fold):
    """A trainer as nnUNetv2_train makes it."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", int(fold), name, plans, device=CPU)
    trainer.initialize()
    return trainer


def watch(trainer):
    """Hashes of all that is trained, after every step."""
    seen, step = [], trainer.train_step

    def train_step(batch):
        result = step(batch)
        adversary = getattr(trainer.optimizer, "adversary", None)
        networks = [trainer.network.module.state_dict(), *([adversary.state_dict()["weights"]] if adversary else [])]
        seen.append([hash_weights(weights) for weights in networks])
        return result

    trainer.train_step = train_step
    return seen


def main():
    """Train."""
    rank, processes, folder, pairs, dataset, plans, fold = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(int(rank))  # weights differ until the group shares them
    shorten()
    use_threads()
    names = ("GuidanceTeacherTrainer", "KnowledgeKeeperTrainer", "GuidedTrainer_1epoch")
    trainers = [build(name, own, plans, fold) for name, own in zip(names, (pairs, pairs, dataset), strict=True)]
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=int(processes))
    seen = {}
    for name, trainer in zip(names, trainers, strict=True):
        join_group(trainer)
        if name == names[1]:
            trainer.optimizer.adversary.distribute()
        seen[name] = watch(trainer)
        trainer.run_training()
        if name != names[2]:  # that is nnU-Net's own
            trainer.perform_actual_validation()
        dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()
