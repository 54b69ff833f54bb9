"""What REHRSegTrainer costs beside nnUNetTrainer: step, memory, loader and LR prediction, as ratios from one run.

    python benchmarks/cost.py -d 509 -c 3d_fullres -p nnUNetPlans --self-sr RESULTS/SelfSRTrainer__.../fold_0

The dataset must be planned and preprocessed (nnU-Net's environment variables set). `--self-sr`, the stage-1 folder of
fold `-f` (0) with pseudo-HR cases, is needed for the loader's ratio only; the teacher that a step runs has random
weights of the plans' size, which cost the same. Guidance has a table of its own: `python -m benchmarks.guidance.cost`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.evaluation.tables import format_table
from rehrseg_nnunet.segmentation.distillation import Distillation
from rehrseg_nnunet.segmentation.hr_network import output_mode, set_output_mode
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher
from rehrseg_nnunet.self_sr.export import STORE_NAME
from rehrseg_nnunet.self_sr.network import build_self_sr_network

WORKERS = "nnUNet_n_proc_DA"
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux
STOCK, OURS = "nnUNetTrainer", "REHRSegTrainer"


def main() -> None:
    """Measure and print a table."""
    args = _arguments()
    ensure_trainer_path()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(_peak_memory(args))
        return
    rows = [_step_row(args), _memory_row(args), _prediction_row(args)]
    if args.self_sr:
        rows.append(_loader_row(args))
    print(format_table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-f", type=int, default=0, help="fold whose cases the loaders read")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--self-sr", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.self_sr and args.self_sr.resolve().name != f"fold_{args.f}":
        parser.error(f"--self-sr must be a folder fold_{args.f} (-f {args.f}), got {args.self_sr}")
    return args


def _trainer(args: argparse.Namespace, name: str) -> Any:
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ[WORKERS] = "0"
    with open(os.devnull, "w") as silence:
        stdout, sys.stdout = sys.stdout, silence
        try:
            trainer = get_trainer_from_args(args.d, args.c, args.f, name, args.p, device=torch.device(args.device))
            if trainer.label_manager.has_regions:
                raise ValueError(f"-d must be a dataset without regions, got {trainer.plans_manager.dataset_name}")
            trainer.print_to_log_file = lambda *_, **__: None
            trainer.initialize()
        finally:
            sys.stdout = stdout
    if name == OURS:
        network = build_self_sr_network(
            trainer.config, trainer.num_input_channels, trainer.label_manager.num_segmentation_heads
        )
        teacher = SelfSRTeacher(network.eval().to(trainer.device), trainer.label_manager)
        settings = trainer.config.segmentation
        trainer.loss.distillation = Distillation(
            teacher, kind=settings.distillation, pool=settings.affinity_pool, label_manager=trainer.label_manager
        )
        set_output_mode(trainer.network, "training")
    return trainer


def _batch(trainer: Any) -> dict[str, Any]:
    """Random data of the shapes that the trainer's loader gives."""
    if type(trainer).__name__ != OURS:
        return segmentation_batch(trainer)
    batch = segmentation_batch(trainer, scales=trainer._lr_scales)
    slices, *in_plane = trainer.configuration_manager.patch_size
    hr = _labels(trainer, torch.tensor([slices * trainer.config.factor, *in_plane]))
    thin = trainer._thin_scales
    coarser = [] if thin is None else zip(*map(thin.coarser, hr), strict=True)
    targets = PatchTargets(
        hr=hr,
        uncertainty=torch.rand(trainer.batch_size, 1, slices, *in_plane),
        image=batch["data"].clone(),
        inside=torch.ones(trainer.batch_size, 1, slices, 1, 1, dtype=torch.bool),
        hr_uncertainty=torch.rand(hr.shape) if trainer._weights_hr else torch.empty(trainer.batch_size, 1, 0, 0, 0),
    )
    batch["target"] += [*map(torch.stack, coarser), *targets]
    return batch


def segmentation_batch(trainer: Any, *, scales: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
    """Random data of the shapes that nnU-Net's loader gives, labels at other scales than its own if some are given."""
    shape = torch.tensor(trainer.configuration_manager.patch_size)
    scales = scales or trainer._get_deep_supervision_scales() or [[1, 1, 1]]
    target = [_labels(trainer, (shape * torch.tensor(scale)).round().int()) for scale in scales]
    return {"data": torch.randn(trainer.batch_size, trainer.num_input_channels, *shape.tolist()), "target": target}


def _labels(trainer: Any, size: torch.Tensor) -> torch.Tensor:
    classes = trainer.label_manager.num_segmentation_heads
    return torch.randint(0, classes, (trainer.batch_size, 1, *size.tolist()), dtype=torch.int16)


def interleaved(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of functions called in turn, after two warm-ups of each."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 2):
        for function, collected in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 2:
                collected.append(time.perf_counter() - started)
    return [statistics.median(collected) for collected in times]


def _row(what: str, stock: float, ours: float, unit: str) -> dict[str, str]:
    return {"": what, STOCK: f"{stock:.4g} {unit}", OURS: f"{ours:.4g} {unit}", "ratio": f"{ours / stock:.3f}"}


def _step_row(args: argparse.Namespace) -> dict[str, str]:
    steps = []
    for name in (STOCK, OURS):
        trainer = _trainer(args, name)
        batch = _batch(trainer)
        steps.append(lambda trainer=trainer, batch=batch: trainer.train_step(batch))
    return _row("training step, loader excluded", *interleaved(steps, args.repeats), "s")


def _memory_row(args: argparse.Namespace) -> dict[str, str]:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of"]
    peaks = [
        float(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.split()[-1])
        for name in (STOCK, OURS)
    ]
    return _row("peak memory of training steps", *peaks, "GiB")


def _peak_memory(args: argparse.Namespace) -> float:
    """Peak GiB of building a trainer and three steps: on the device, or on the CPU what they add to the process."""
    import nnunetv2.run.run_training  # noqa: F401 (not part of what is measured)

    def steps() -> None:
        trainer = _trainer(args, args.peak_of)
        batch = _batch(trainer)
        for _ in range(3):
            trainer.train_step(batch)

    return peak_gib(steps, device=args.device)


def peak_gib(work: Callable[[], None], *, device: str) -> float:
    """Peak GiB of some work: on the device, or on the CPU what it adds to the process."""
    CLEAR_REFS.write_text("5")  # resets the resident set's high-water mark to what it is now
    before = _resident_kib("VmHWM")
    work()
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return (_resident_kib("VmHWM") - before) / 2**20


def _resident_kib(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry)).split()[1])


def _prediction_row(args: argparse.Namespace) -> dict[str, str]:
    stock, ours = (_trainer(args, name) for name in (STOCK, OURS))
    image = _batch(stock)["data"][:1].to(stock.device)
    with output_mode(ours.network, "lr"), torch.inference_mode():
        calls = [_convolution_calls(trainer.network.eval(), image) for trainer in (stock, ours)]
        if calls[0] != calls[1]:
            raise RuntimeError(f"LR prediction must take as many convolutions as stock, got {calls[1]} and {calls[0]}")
        seconds = interleaved([lambda: stock.network(image), lambda: ours.network(image)], max(20, args.repeats))
    return _row(f"LR prediction ({calls[0]} convolutions each)", *seconds, "s")


def _convolution_calls(network: torch.nn.Module, image: torch.Tensor) -> int:
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in {id(m): m for m in network.modules()}.values()
        if isinstance(module, torch.nn.modules.conv._ConvNd)
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return len(calls)


def _loader_row(args: argparse.Namespace) -> dict[str, str]:
    """Seconds per training batch of the loaders with their transforms, in this process."""
    stock, ours = (_trainer(args, name) for name in (STOCK, OURS))
    ours.pseudo_hr_folder = args.self_sr / STORE_NAME
    first, second = (trainer.get_dataloaders()[0] for trainer in (stock, ours))
    return _row("loader, one batch", *interleaved([first.__next__, second.__next__], 10 * args.repeats), "s")


if __name__ == "__main__":
    main()
