"""Networks that get another forward and stay what they were."""

import copy

import pytest
import torch
from torch import nn

from rehrseg_nnunet.nnunet.extended_network import Extension, extend, is_extended, unwrap


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.first(x))


class Plus(Extension):
    amount = 0.0

    def forward(self, x):
        return super().forward(x) + self.amount

    def more(self):
        return self.amount + 1


class Doubled(Extension):
    def forward(self, x):
        return 2 * super().forward(x)


class Headed(Extension):
    def forward(self, x):
        return self.head(super().forward(x))


def network(seed=0):
    torch.manual_seed(seed)
    return Network().eval()


def images():
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(1))


def test_the_network_keeps_its_weights_and_its_class():
    before = network()
    weights = {key: value.clone() for key, value in before.state_dict().items()}
    parameters = list(before.parameters())
    after = extend(before, Plus, amount=3.0)
    assert after is before
    assert isinstance(after, Network)
    assert isinstance(after, Plus)
    assert list(after.state_dict()) == list(weights)  # in this order
    assert all(torch.equal(value, weights[key]) for key, value in after.state_dict().items())
    assert all(ours is former for ours, former in zip(after.parameters(), parameters, strict=True))
    assert after.load_state_dict(network(seed=5).state_dict()).missing_keys == []


def test_the_former_forward_is_reached():
    expected = network()(images())
    extended = extend(network(), Plus, amount=3.0)
    torch.testing.assert_close(extended(images()), expected + 3)
    assert extended.more() == 4
    extended.amount = 5.0
    torch.testing.assert_close(extended(images()), expected + 5)


def test_attributes_belong_to_one_network():
    one, other = extend(network(), Plus, amount=3.0), extend(network(), Plus)
    assert (one.amount, other.amount, Plus.amount) == (3.0, 0.0, 0.0)
    assert not isinstance(network(), Plus)


@pytest.mark.parametrize(
    ("order", "expected"), [((Plus, Doubled), lambda y: 2 * (y + 3)), ((Doubled, Plus), lambda y: 2 * y + 3)]
)
def test_extensions_compose_and_the_last_is_called_first(order, expected):
    plain = network()(images())
    extended = network()
    for extension in order:
        extend(extended, extension, **({"amount": 3.0} if extension is Plus else {}))
    torch.testing.assert_close(extended(images()), expected(plain))
    assert is_extended(extended, Plus)
    assert is_extended(extended, Doubled)


def test_modules_become_children_with_weights():
    head = nn.Linear(3, 5)
    extended = extend(network(), Headed, head=head)
    own = list(network().state_dict())
    assert list(extended.state_dict()) == [*own, "head.weight", "head.bias"]
    assert dict(extended.named_children())["head"] is head
    assert {id(p) for p in head.parameters()} <= {id(p) for p in extended.parameters()}
    torch.testing.assert_close(extended(images()), head(network()(images())))
    assert extended.double()(images().double()).dtype == torch.float64


def test_networks_of_one_kind_have_one_type():
    assert type(extend(network(), Plus)) is type(extend(network(), Plus))
    assert type(extend(network(), Plus)) is not type(extend(network(), Doubled))
    assert type(extend(network(), Plus)).__name__ == "PlusNetwork"


@pytest.mark.parametrize("between", [False, True])
def test_the_same_extension_twice_is_refused(between):
    extended = extend(network(), Plus, amount=3.0)
    if between:
        extend(extended, Doubled)
    expected = extended(images())
    with pytest.raises(ValueError, match=r"network must be without Plus, got a \w*PlusNetwork"):
        extend(extended, Plus, amount=7.0)
    torch.testing.assert_close(extended(images()), expected)


def test_a_copy_is_extended_and_independent():
    extended = extend(network(), Headed, head=nn.Linear(3, 5))
    copied = copy.deepcopy(extended)
    assert type(copied) is type(extended)
    torch.testing.assert_close(copied(images()), extended(images()))
    nn.init.zeros_(copied.head.weight)
    assert (extended.head.weight != 0).any()


class Compiled(nn.Module):
    """What torch.compile wraps a network in."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner


class Distributed(nn.parallel.DistributedDataParallel):
    """Without a process group."""

    def __init__(self, inner):
        nn.Module.__init__(self)
        self.module = inner


@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, Compiled, Distributed, lambda n: Distributed(Compiled(n)), lambda n: Compiled(Distributed(n))],
)
def test_wrapped_networks_are_looked_into(wrap):
    inner = extend(network(), Plus)
    assert unwrap(wrap(inner)) is inner
    assert is_extended(wrap(inner), Plus)
    assert not is_extended(wrap(inner), Doubled)
    assert not is_extended(wrap(network()), Plus)


def test_torch_compiles_wrapper_is_looked_into():
    inner = network()
    assert unwrap(torch.compile(inner)) is inner
