"""nnU-Net's training from a seed and in another precision."""

import atexit
import json
import random
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from benchmarks.quality import launch
from benchmarks.quality.clock import Clock

ARGUMENTS = ["Dataset504_Tiny_r4z", "3d_fullres", "0", "--c"]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Launch with a seed and a precision; what nnU-Net's command would be given and draw."""
    drawn = []

    def entry_point():
        drawn.append((sys.argv[1:], random.random(), np.random.random(), float(torch.rand(1))))  # noqa: NPY002

    def run(seed, precision="float32"):
        monkeypatch.setattr(sys, "argv", ["launch", seed, precision, str(tmp_path / "seconds.json"), *ARGUMENTS])
        launch.main()
        return drawn.pop()

    monkeypatch.setattr(launch, "run_training_entry", entry_point)
    monkeypatch.setattr(nnUNetTrainer, "initialize", nnUNetTrainer.initialize)  # undone after the test
    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", nnUNetTrainer.save_checkpoint)
    monkeypatch.setattr(atexit, "register", lambda function: None)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield run
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def test_a_seed_draws_the_same_again_and_another_one_something_else(start):
    first, again, other = start("5"), start("5"), start("6")
    assert first == again
    assert first[0] == ARGUMENTS
    assert all(one != another for one, another in zip(first[1:], other[1:], strict=True))


@pytest.mark.parametrize(("variable", "counts"), [("1", [1]), ("", [8])])
def test_threads_are_as_many_as_the_variable_says(start, monkeypatch, variable, counts):
    """On a CPU nnU-Net's command asks for all cores."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    start("0")
    torch.set_num_threads(8)
    assert asked == counts


@pytest.mark.parametrize("precision", launch.PRECISIONS)
def test_a_precision_is_that_of_the_launch(start, monkeypatch, precision):
    chosen = []
    monkeypatch.setattr(launch, "run_networks_in_bfloat16", lambda: chosen.append("bfloat16"))
    monkeypatch.setattr(launch, "lay_networks_channels_last", lambda: chosen.append("float32"))
    start("0", precision)
    assert chosen == [precision]


class Outputs(NamedTuple):
    scales: list
    index: torch.Tensor
    missing: None = None


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 8)

    def forward(self, values):
        result = self.layer(values)
        self.computed_in = result.dtype
        return Outputs([result, result[:2]], result.argmax(dim=-1))


@pytest.fixture
def network(monkeypatch):
    """As a trainer in bfloat16 has it; weights in [0, 1) that bfloat16 rounds."""

    def initialize(trainer):
        trainer.network = Network()

    torch.manual_seed(0)
    monkeypatch.setattr(nnUNetTrainer, "initialize", initialize)
    launch.run_networks_in_bfloat16()
    trainer = SimpleNamespace(device=torch.device("cpu"))
    nnUNetTrainer.initialize(trainer)
    return trainer.network


def test_layers_compute_in_bfloat16_and_all_else_in_float32(network):
    values = torch.rand(4, 64)
    outputs = network(values)
    assert network.computed_in == torch.bfloat16
    assert isinstance(outputs, Outputs)
    assert [scale.dtype for scale in outputs.scales] == [torch.float32] * 2
    assert outputs.index.dtype == torch.int64
    assert outputs.missing is None
    expected = nn.functional.linear(values, network.layer.weight, network.layer.bias)
    torch.testing.assert_close(outputs.scales[0], expected, atol=0.05, rtol=0)
    assert not torch.equal(outputs.scales[0], expected)
    outputs.scales[0].sum().backward()
    assert network.layer.weight.grad.dtype == network.layer.weight.dtype == torch.float32
    torch.testing.assert_close(network.layer.weight.grad, values.sum(dim=0).expand(8, -1), atol=0.05, rtol=0)


def test_other_networks_and_the_state_dict_stay_as_they_are(network):
    assert set(network.state_dict()) == {"layer.weight", "layer.bias"}
    other = Network()
    other(torch.rand(4, 64))
    assert other.computed_in == torch.float32


def test_channels_last_changes_the_layout_of_3d_weights_and_no_result(monkeypatch):
    def initialize(trainer):
        trainer.network = nn.ModuleList([nn.Conv3d(3, 8, 3, padding=1), nn.Conv2d(4, 8, 3)])

    monkeypatch.setattr(nnUNetTrainer, "initialize", initialize)
    networks, image = [], torch.rand(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    for lay in (lambda: None, launch.lay_networks_channels_last):
        torch.manual_seed(0)
        lay()
        trainer = SimpleNamespace()
        nnUNetTrainer.initialize(trainer)
        trainer.network[0](image).square().sum().backward()
        networks.append(trainer.network)
    plain, last = networks
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert last[0](image).is_contiguous(memory_format=torch.channels_last_3d)
    assert not last[0].weight.is_contiguous()
    assert last[1].weight.is_contiguous()
    torch.testing.assert_close(last[0].weight.grad, plain[0].weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(last[0](image), plain[0](image), rtol=1e-4, atol=1e-5)
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, last.state_dict()[name])


@pytest.fixture
def patched(monkeypatch):
    """nnU-Net's trainer with a save that notes its file; what is registered for the end of the process."""
    saved, at_end = [], []
    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", lambda trainer, filename: saved.append(filename))
    monkeypatch.setattr(atexit, "register", at_end.append)
    return saved, at_end


def test_seconds_are_written_with_every_checkpoint_and_at_the_end(patched, monkeypatch, tmp_path):
    """So those of a killed attempt until its last checkpoint count, and what it did after that does not."""
    saved, (file, other) = patched[0], (tmp_path / "a" / "seconds.json", tmp_path / "other.json")
    cpu = iter([10.0, 25.0, 4.0, 7.0])
    monkeypatch.setattr(launch, "cpu_seconds", lambda: next(cpu))
    launch.measure(Clock(file, "train"))
    trainer = SimpleNamespace()
    for name, expected in (("latest", 10), ("best", 25)):
        nnUNetTrainer.save_checkpoint(trainer, name)
        assert json.loads(file.read_text())["train"]["cpu"] == expected
    Clock(file, "predict_lr").save(3.0)
    launch.measure(Clock(file, "train"))  # the next attempt, by another process
    patched[1][-1]()
    seconds = json.loads(file.read_text())
    assert seconds["train"]["cpu"] == 29
    assert seconds["predict_lr"]["cpu"] == 3
    assert saved == ["latest", "best"]
    assert not other.exists()


def test_one_process_trains_a_run(start, tmp_path, monkeypatch):
    start("0")
    with FileLock(tmp_path / "other.lock"):
        monkeypatch.setattr(sys, "argv", ["launch", "0", "float32", str(tmp_path / "other.json"), *ARGUMENTS])
        with pytest.raises(SystemExit, match=r"^error: another process still trains what .*other\.json is of"):
            launch.main()
