"""One of several processes that train together: `main` of RANK PROCESSES FOLDER DATASET PLANS.

Both stages of fold 0 under a gloo group on the CPU; `FOLDER/RANK.json` says what this process did. nnU-Net takes CUDA
for granted where a group is up, so the trainers are built first and told of the group afterwards.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from short_runs import shorten, use_threads
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.self_sr import report as self_sr_report

STEPS = 3
CPU = torch.device("cpu")


def build(name, dataset, plans):
    """A trainer as nnUNetv2_train makes it."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", 0, name, plans, device=CPU)
    trainer.initialize()
    return trainer


def join_group(trainer):
    """What nnUNetTrainer's __init__ and initialize do where a group is up."""
    trainer.is_ddp, trainer.local_rank = True, dist.get_rank()
    trainer._set_batch_size_and_oversample()
    trainer.network = DistributedDataParallel(trainer.network)
    trainer.loss = trainer._build_loss()
    trainer.cases_between_barriers = 1  # several rounds, the last of which not all ranks take part in
    if hasattr(trainer, "_initial_hash"):
        trainer._initial_hash = hash_weights(trainer.network.module.state_dict())


def watch(trainer):
    """What happens in a training, filled in as it goes on."""
    seen = {"weights": [], "batches": [], "losses": [], "uncertainty": [], "batch_size": trainer.batch_size}
    seen["oversample"] = trainer.oversample_foreground_percent
    step = trainer.train_step

    def train_step(batch):
        content = hashlib.sha256(batch["data"].numpy().tobytes()).hexdigest()
        seen["batches"].append([len(batch["data"]), content])
        seen["uncertainty"].append(getattr(trainer.loss, "use_uncertainty", None))
        result = step(batch)
        seen["losses"].append(float(result["loss"]))
        seen["weights"].append(hash_weights(trainer.network.module.state_dict()))
        return result

    trainer.train_step = train_step
    return seen


def watch_export():
    """Cases that this process exports, and how many it scores for the report."""
    seen = {"cases": [], "scored": 0}
    write_case, score = CaseStore.write_case, self_sr_report.restoration_scores

    def write_and_note(self, identifier, *arguments, **options):
        seen["cases"].append(identifier)
        write_case(self, identifier, *arguments, **options)

    def score_and_count(*arguments, **options):
        seen["scored"] += 1
        return score(*arguments, **options)

    CaseStore.write_case, self_sr_report.restoration_scores = write_and_note, score_and_count
    return seen


def validate_one_case(trainer):
    """What `--val` does, for a split whose validation cases are fewer than the processes."""
    training, validation = trainer.do_split()
    trainer.do_split = lambda: (training, validation[:1])
    trainer.print_to_log_file = lambda *_, **__: None  # what the trainings print is counted
    trainer.perform_actual_validation()


def main():
    """Train."""
    rank, processes, folder, dataset, plans = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(int(rank))  # weights differ until the group shares them
    shorten()
    use_threads()
    trainers = ("SelfSRTrainer", "REHRSegTrainer", "REHRSegTrainer_1epoch", "REHRSegTrainer_2epochs")
    stage_1, stage_2, undistilled, validated = (build(name, dataset, plans) for name in trainers)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=int(processes))
    seen = {}
    for name, trainer in (("stage 1", stage_1), ("stage 2", stage_2), ("without distillation", undistilled)):
        join_group(trainer)
        seen[name] = watch(trainer)
    export = watch_export()
    stage_1.run_training()
    stage_1.perform_actual_validation()
    dist.barrier()
    stage_2.run_training()
    stage_2.perform_actual_validation()
    join_group(validated)
    validate_one_case(validated)
    undistilled.on_train_start()
    undistilled.loss.distillation_weight = 0  # the adaptor is in no term of the loss
    undistilled.on_train_epoch_start()
    for _ in range(STEPS):
        undistilled.train_step(next(undistilled.dataloader_train))
    seen |= {"export": export, "deep supervision": list(stage_2.loss.lr_loss.weight_factors)}
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()
