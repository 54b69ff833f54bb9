import argparse
import json
import os

import pytest
import torch

from rehrseg_nnunet.cli import convert_flavr
from rehrseg_nnunet.self_sr.flavr import FLAVR
from rehrseg_nnunet.self_sr.flavr_checkpoint import load_backbone, read_flavr_checkpoint
from rehrseg_nnunet.self_sr.network import SelfSRNetwork

BASE = 2


@pytest.fixture
def flavr():
    torch.manual_seed(3)
    return FLAVR(3, 3, base_features=BASE)


@pytest.fixture
def checkpoint(flavr, tmp_path):
    path = tmp_path / "FLAVR_4x.pth"
    state_dict = {f"module.{name}": tensor for name, tensor in flavr.state_dict().items()}
    torch.save({"state_dict": state_dict, "epoch": 7, "optimizer": {"state": {}}}, path)
    return path


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """A preprocessed dataset as far as this command looks: plans and dataset.json."""
    folder = tmp_path / "preprocessed" / "Dataset509_Thick"
    folder.mkdir(parents=True)
    block = {"factor": 4, "self_sr": {"base_features": BASE, "candidates": 3}}
    fullres = {
        "spacing": [4.0, 1.0, 1.0],
        "patch_size": [4, 16, 16],
        "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization"],
        "architecture": {},
        "rehrseg": block,
    }
    configurations = {
        "3d_fullres": fullres,
        "wide": {"inherits_from": "3d_fullres", "rehrseg": {"factor": 4, "self_sr": {"base_features": 3}}},
        "2d": {"spacing": [1.0, 1.0], "architecture": {}, "normalization_schemes": ["ZScoreNormalization"]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    plans = {"plans_name": "nnUNetPlans", "label_manager": "LabelManager", "configurations": configurations}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


def convert(*arguments) -> None:
    parser = argparse.ArgumentParser()
    convert_flavr.add_arguments(parser)
    convert_flavr.run(parser.parse_args([str(argument) for argument in arguments]))


def test_result_passes_nnunets_own_loader(flavr, checkpoint, preprocessed, tmp_path, capsys):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    out = tmp_path / "new" / "out.pth"
    convert(checkpoint, "-o", out, "-d", 509, "-c", "3d_fullres")
    assert f"wrote {out}" in capsys.readouterr().out
    assert os.listdir(out.parent) == ["out.pth"]

    network = SelfSRNetwork(2, 3, 4, base_features=BASE, candidates=3)
    load_pretrained_weights(network, str(out))
    written = torch.load(out, weights_only=True)["network_weights"]
    assert written.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, written[name])
        if name.startswith(("encoder.layer", "decoder.")):
            assert torch.equal(tensor, flavr.state_dict()[name])


def test_same_file_every_time_and_global_random_state_untouched(checkpoint, preprocessed, tmp_path):
    state = torch.random.get_rng_state()
    convert(checkpoint, "-o", tmp_path / "a.pth", "-d", "Dataset509_Thick", "-c", "3d_fullres")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    convert(checkpoint, "-o", tmp_path / "b.pth", "-d", 509, "-c", "3d_fullres")
    first, second = (torch.load(tmp_path / f"{n}.pth", weights_only=True)["network_weights"] for n in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_width_is_refused_and_nothing_is_written(checkpoint, preprocessed, tmp_path):
    with pytest.raises(ValueError, match=r"base_features must be 2 .* got 3; set rehrseg\.self_sr\.base_features"):
        convert(checkpoint, "-o", tmp_path / "out.pth", "-d", 509, "-c", "wide")
    assert not (tmp_path / "out.pth").exists()


def test_failed_write_keeps_the_old_file(checkpoint, preprocessed, tmp_path, monkeypatch):
    out = tmp_path / "out" / "out.pth"
    out.parent.mkdir()
    out.write_bytes(b"old")

    def interrupted(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_flavr.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, "-o", out, "-d", 509, "-c", "3d_fullres")
    assert out.read_bytes() == b"old"
    assert os.listdir(out.parent) == ["out.pth"]


def test_a_full_disk_is_named(checkpoint, preprocessed, tmp_path, monkeypatch):
    def fail(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # as PyTorch does

    monkeypatch.setattr(convert_flavr.torch, "save", fail)
    with pytest.raises(OSError, match=r"out\.pth could not be written: unexpected pos .*; free space there"):
        convert(checkpoint, "-o", tmp_path / "out.pth", "-d", 509, "-c", "3d_fullres")
    assert not list(tmp_path.glob("out.pth*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nnUNetPlans.json", "{,", r"nnUNetPlans\.json must be JSON, got a mistake at line 1, column 2"),
        ("dataset.json", "\ufeff{}", r"dataset\.json must not begin with a byte order mark"),
        ("dataset.json", "{}", r"dataset\.json must have the key labels"),
    ],
)
def test_broken_json_files_are_named(checkpoint, preprocessed, tmp_path, name, content, message):
    (preprocessed / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, "-o", tmp_path / "out.pth", "-d", 509, "-c", "3d_fullres")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("-d", 509, "-c", "2d"), NotImplementedError, "needs a 3d configuration"),
        (("-d", 509, "-c", "3d_cascade_fullres"), NotImplementedError, "does not support cascades"),
        (("-d", 509, "-c", "3d_other"), RuntimeError, "3d_other not found in plans"),
        (("-d", 510, "-c", "3d_fullres"), FileNotFoundError, "dataset 510 was not found"),
        (("-d", 509, "-c", "3d_fullres", "-p", "other"), FileNotFoundError, r"other\.json is missing; run nnUNetv2"),
    ],
)
def test_wrong_targets_are_refused(arguments, error, message, checkpoint, preprocessed, tmp_path):
    with pytest.raises(error, match=message):
        convert(checkpoint, "-o", tmp_path / "out.pth", *arguments)
    assert not (tmp_path / "out.pth").exists()


def test_backbone_is_flavrs_function(flavr):
    network = SelfSRNetwork(1, 2, 2, base_features=BASE, candidates=2, smooth_upsampling=False)
    stem = network.encoder.stem[0].weight.clone()
    head = network.head.fuse.weight.clone()
    loaded, fresh = load_backbone(network, flavr.state_dict())
    assert "encoder.layer1" in loaded
    assert "decoder.4" in loaded
    assert "encoder.stem" in fresh
    assert "head.fuse" in fresh
    assert torch.equal(network.encoder.stem[0].weight, stem)
    assert torch.equal(network.head.fuse.weight, head)
    network.encoder.stem = flavr.encoder.stem
    x = torch.rand(1, 3, 4, 8, 8)
    torch.testing.assert_close(network.decoder(network.encoder(x)), flavr.decoder(flavr.encoder(x)))


@pytest.mark.parametrize("frames", [1, 3, 7])
def test_prefix_is_optional_and_frames_are_free(frames, tmp_path):
    network = FLAVR(3, frames, base_features=BASE)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "flavr.pth")
    assert read_flavr_checkpoint(tmp_path / "flavr.pth").keys() == network.state_dict().keys()


def without_layer(state_dict):
    return {name: tensor for name, tensor in state_dict.items() if "layer3" not in name}


def with_other_stem(state_dict):
    return state_dict | {"encoder.stem.0.weight": torch.zeros(BASE, 1, 3, 7, 7)}


def with_normalisation(state_dict):
    return state_dict | {"encoder.stem.1.running_mean": torch.zeros(BASE)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layer, r"it lacks encoder\.layer3\.0\.conv1\.0\.weight, .* and \d+ more"),
        (with_other_stem, r"another shape: encoder\.stem\.0\.weight \(2, 1, 3, 7, 7\) instead of \(2, 3, 3, 7, 7\)"),
        (with_normalisation, r"FLAVR does not have its encoder\.stem\.1\.running_mean"),
        (lambda _: {}, r"it lacks encoder\.stem\.0\.weight"),
        (lambda _: {"encoder.stem.0.bias": torch.zeros(0), "outconv.1.bias": torch.zeros(4)}, "it lacks"),
    ],
)
def test_other_networks_are_refused(change, message, flavr, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": change(dict(flavr.state_dict()))}, path)
    with pytest.raises(ValueError, match=f"must hold the weights of FLAVR, but .*{message}"):
        read_flavr_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network_weights": {}}, "under the key 'state_dict', got keys network_weights"),
        ({"state_dict": {"a": 1}}, "under the key 'state_dict'"),
        ([1, 2], "under the key 'state_dict', got list"),
        (argparse.Namespace(), "holds other Python objects"),
    ],
)
def test_files_of_other_content_are_refused(content, message, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_flavr_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04broken", b"\x80\x02]"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pth must be a file"):
        read_flavr_checkpoint(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"FLAVR checkpoint not found: .*none\.pth"):
        read_flavr_checkpoint(tmp_path / "none.pth")


def test_the_checkpoint_itself_is_never_replaced(checkpoint, preprocessed):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"^-o must not be .*FLAVR_4x\.pth, which is the checkpoint to convert"):
        convert(checkpoint, "-o", checkpoint, "-d", "509", "-c", "3d_fullres")
    assert checkpoint.read_bytes() == before
