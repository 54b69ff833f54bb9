"""Checkpoints read, weights hashed and loaded into frozen networks."""

import pytest
import torch
from torch import nn

from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen, read_checkpoint, read_weights

REMEDY = "run: nnUNetv2_train 9 3d_fullres 0 -tr SelfSRTrainer"


class Network(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.BatchNorm1d(width)


def save(file, weights):
    torch.save({"network_weights": weights}, file)
    return file


def load(file, width=3):
    return load_frozen(Network(width), file, sizes=f"width {width}", remedy=REMEDY)


def test_a_loaded_network_is_the_trained_one_and_frozen(tmp_path):
    trained = Network()
    nn.init.normal_(trained.second.running_mean)
    network = load(save(tmp_path / "a.pth", trained.state_dict()))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for (name, ours), (key, theirs) in zip(network.state_dict().items(), trained.state_dict().items(), strict=True):
        assert name == key
        assert torch.equal(ours, theirs)


def test_other_sizes_are_refused_with_the_remedy(tmp_path):
    file = save(tmp_path / "a.pth", Network().state_dict())
    with pytest.raises(ValueError, match=rf"{file} must fit the plans \(width 4\), but first.bias is \(3,\).*{REMEDY}"):
        load(file, width=4)


@pytest.mark.parametrize("missing", [True, False])
def test_missing_and_additional_weights_are_named(tmp_path, missing):
    weights = Network().state_dict()
    weights.pop("first.bias") if missing else weights.update({"head.more": torch.zeros(1)})
    expected = "first.bias is missing" if missing else "head.more is .* not expected"
    with pytest.raises(ValueError, match=expected):
        load(save(tmp_path / "a.pth", weights))


@pytest.mark.parametrize("content", [b"", b"garbage, no checkpoint", b"PK\x03\x04 half a zip", {"weights": 1}, [1, 2]])
def test_unreadable_checkpoints_give_the_remedy(tmp_path, content):
    file = tmp_path / "a.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=f"must be an nnU-Net checkpoint, got an unreadable file .*{REMEDY}"):
        read_checkpoint(file, remedy=REMEDY)


def test_a_missing_checkpoint_gives_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=f"must be an nnU-Net checkpoint.*{REMEDY}"):
        read_weights(tmp_path / "none.pth", remedy=REMEDY)


def test_the_hash_is_of_names_dtypes_shapes_and_values():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    reference = hash_weights(weights)
    assert hash_weights(dict(reversed(weights.items()))) == reference
    assert hash_weights({**weights, "a": weights["a"].T.contiguous().T}) == reference
    for changed in (
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + 1e-6},
        {"x": weights["a"], "b": weights["b"], "c": weights["c"]},
    ):
        assert hash_weights(changed) != reference
    with pytest.raises(ValueError, match="state_dict must hold tensors only, got int for n"):
        hash_weights({"n": 3})
