"""What happens where the device's memory does not suffice: the same results, in smaller batches or on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.cost import as_predictor
from benchmarks.gpu.data import SMALL, GPUData
from benchmarks.gpu.scheduler import Context
from benchmarks.gpu.trainings import build
from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.nnunet.weights import read_weights
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.self_sr.network import build_self_sr_network
from rehrseg_nnunet.self_sr.super_resolve import super_resolve

TOLERANCE = 0.05  # of the largest value; mixed precision on one side
FREE_SHARES = (0.6, 0.02)  # of what the computation took: some of it fits, next to nothing does


def super_resolution(context: Context) -> Iterator[dict[str, Any]]:
    """Stage 1's export of a case with less memory than all windows together need."""
    data, device = context.settings.data, context.settings.device
    planned = data.planned(data.thick)
    heads = planned.label_manager.num_segmentation_heads
    image, labels = _case(data)
    channels = len(image)
    config = load_config(planned.configuration_manager.configuration)
    network = build_self_sr_network(config, channels, heads).eval()
    network.load_state_dict(read_weights(data.stage_1 / "checkpoint_final.pth", remedy="prepare the data again"))
    network.to(device)
    one_hot = to_channels(torch.from_numpy(labels[0].astype(np.int64)), head_labels(planned.label_manager))

    def compute() -> torch.Tensor:
        return super_resolve(network, torch.from_numpy(image), one_hot, windows_per_batch=image.shape[1] + 1).image

    failing = _failing_once(network, "forward")
    yield from _compared("super_resolve", compute, device, failing=failing, shares=FREE_SHARES)


def prediction(context: Context) -> Iterator[dict[str, Any]]:
    """A thin-slice prediction whose logits find no memory. Of a small case a patch takes nearly all that it takes."""
    data, device = context.settings.data, context.settings.device
    trainer = build("REHRSegTrainer", data.thick, SMALL, device=device)
    trainer.initialize()
    predictor = as_predictor(trainer, HRPredictor)
    image, _ = _case(data)

    def compute() -> torch.Tensor:
        return torch.as_tensor(predictor.predict_sliding_window_return_logits(torch.from_numpy(image)))

    yield from _compared("predict", compute, device, failing=_failing_once(predictor, "_to_hr"))


def _case(data: GPUData) -> tuple[np.ndarray, np.ndarray]:
    image, labels, _, _ = data.cases(data.thick).load_case(data.validation[0])
    return np.asarray(image[:], dtype=np.float32), np.asarray(labels[:])


def _compared(
    what: str, compute: Callable[[], torch.Tensor], device: str, *, failing: Any, shares: Sequence[float] = ()
) -> Iterator[dict[str, Any]]:
    """With all memory; with one failure that is made up; on a GPU with shares of the memory that it takes."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
    expected = compute()
    taken = torch.cuda.max_memory_reserved() - before if cuda else 0
    with failing:
        yield {"what": what, "fault": "one made-up failure", **_difference(compute(), expected)}
    for share in shares if cuda else ():
        with _memory_limit(before + round(taken * share)):
            result = compute()
        yield {"what": what, "fault": f"{share:g} of the memory that it took", **_difference(result, expected)}


def _difference(result: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    worst = float((result.float() - expected.float()).abs().max() / expected.float().abs().max())
    return {"worst_difference": worst, "passed": worst <= TOLERANCE}


@contextmanager
def _failing_once(owner: Any, method: str) -> Iterator[None]:
    """The first call of a method finds no memory."""
    original, calls = getattr(owner, method), []

    def fail_first(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("made up")
        return original(*args, **options)

    setattr(owner, method, fail_first)
    try:
        yield
        if len(calls) < 2:
            raise AssertionError(f"{method} must have been tried again")
    finally:
        delattr(owner, method)


@contextmanager
def _memory_limit(limit: int) -> Iterator[None]:
    """PyTorch gets no more of the GPU's memory than `limit` bytes."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
