"""Batches that find no memory: as many items, the same values, fewer at a time."""

import logging

import pytest
import torch
from torch import nn

from rehrseg_nnunet.restoration.batches import Batches
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.super_resolve import super_resolve
from rehrseg_nnunet.smore.export import super_resolve_slices
from rehrseg_nnunet.smore.network import WDSR


class Small(nn.Module):
    """A network on a device without room for more than some items; on the CPU there is room for all."""

    def __init__(self, network, room):
        super().__init__()
        self.network, self.room = network, room
        self.factor = network.factor
        self.tried, self.on_cpu = [], False

    def forward(self, batch):
        self.tried.append(len(batch))
        if len(batch) > self.room and not self.on_cpu:
            raise torch.cuda.OutOfMemoryError("no room")
        return self.network(batch)

    def cpu(self):
        self.on_cpu = True
        return self

    def to(self, device):
        self.on_cpu = False
        return super().to(device)


class Double(nn.Module):
    factor = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return 2 * batch.double(), -batch


@pytest.fixture
def emptied(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(1))
    return calls


def apply(network, *, size, items):
    batches = Batches(network, size=size)
    return batches, batches.apply(lambda first, end: items[first:end], len(items))


@pytest.mark.parametrize(
    ("room", "tried", "failures"),
    [(8, [8, 3], 0), (4, [8, 4, 4, 3], 1), (3, [8, 4, 2, 2, 2, 2, 2, 1], 2), (1, [8, 4, 2, *(11 * [1])], 3)],
)
def test_after_a_failure_batches_stay_small(emptied, room, tried, failures):
    items = torch.randn(11, 2)
    network = Small(Double(), room)
    _, (doubled, negative) = apply(network, size=8, items=items)
    assert network.tried == tried
    assert torch.equal(doubled, 2 * items)
    assert doubled.dtype == torch.float32
    assert torch.equal(negative, -items)
    assert len(emptied) == failures


def test_where_not_one_item_fits_the_cpu_computes_the_rest_of_the_case(emptied, caplog):
    items = torch.randn(3, 2)
    network = Small(Double(), 0)
    with caplog.at_level(logging.WARNING):
        batches, outputs = apply(network, size=2, items=items)
        assert torch.equal(outputs[1], -items)
        assert network.tried == [2, 1, 1, 1, 1]
        assert not network.on_cpu  # it is back on its device
        batches.apply(lambda first, end: items[first:end], 2)
    assert network.tried[5:] == [1, 1]  # nothing is tried again
    assert [record.getMessage() for record in caplog.records] == [
        "cpu memory is too small for this case: it goes on on the CPU"
    ]


def test_lack_of_memory_on_the_cpu_and_other_faults_are_not_hidden(emptied):
    network = Small(Double(), 0)
    network.cpu = lambda: network
    with pytest.raises(torch.cuda.OutOfMemoryError):
        apply(network, size=2, items=torch.zeros(3, 2))
    network.forward = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        apply(network, size=2, items=torch.zeros(3, 2))


@pytest.mark.parametrize("room", [0, 1, 2])
def test_cases_come_out_as_if_there_were_room(emptied, room):
    torch.manual_seed(0)
    image, labels = torch.randn(1, 5, 8, 9), torch.rand(2, 5, 8, 9)
    network = SelfSRNetwork(1, 2, 2, base_features=4, candidates=2).eval()
    small = super_resolve(Small(network, room), image, labels)
    for ours, theirs in zip(small, super_resolve(network, image, labels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    wdsr = WDSR(1, 2, 3, blocks=1, features=4).eval()
    nn.init.normal_(wdsr.residual.weight)
    network, volume = Small(wdsr, room), torch.cat([image, labels])
    for ours, theirs in zip(super_resolve_slices(network, volume), super_resolve_slices(wdsr, volume), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert network.tried.count(8) == 1  # both views are one case
