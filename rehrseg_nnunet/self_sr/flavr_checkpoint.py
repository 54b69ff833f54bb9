"""Read the published FLAVR checkpoints and start stage 1's backbone from them (paper section 3.2).

A checkpoint holds `{"state_dict": {"module.<name>": tensor}}`; other entries (optimiser, epoch) are ignored. Everything
but the stem, whose input channels differ, and what follows the decoder fits `SelfSRNetwork`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from rehrseg_nnunet.self_sr.flavr import FLAVR
from rehrseg_nnunet.self_sr.network import SelfSRNetwork

COLOURS = 3
PREFIX = "module."
FRESH_PREFIX = "encoder.stem."
BACKBONE_PREFIXES = ("encoder.", "decoder.")
EXAMPLES = 3


def read_flavr_checkpoint(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a FLAVR checkpoint file and check that it holds the complete network.

    Any width is accepted, and any number of frames (the 2x and 8x checkpoints have the same backbone as the 4x one).

    Args:
        path: the file; the names may have the prefix `module.` or not.

    Returns:
        Tensors on the CPU by name, without the prefix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a torch file of tensors, has no state_dict, or the state_dict is not FLAVR's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"FLAVR checkpoint not found: {path}")
    state_dict = _state_dict(_load(path), path)
    problems = _differences(state_dict)
    if problems:
        raise ValueError(f"{path} must hold the weights of FLAVR, but {'; '.join(problems)}")
    return state_dict


def load_backbone(network: SelfSRNetwork, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy the weights of FLAVR's encoder and decoder into a network, except for the stem.

    Args:
        network: changed in place; the tensors that FLAVR does not have keep their values.
        state_dict: what `read_flavr_checkpoint` returned.

    Returns:
        Two lines for a log: what was loaded, and what starts fresh.

    Raises:
        ValueError: the network does not have the width of the weights.
    """
    width = len(state_dict["encoder.stem.0.bias"])
    if network.base_features != width:
        raise ValueError(
            f"base_features must be {width} to start from these FLAVR weights, got {network.base_features}"
        )
    loaded = {
        name: tensor
        for name, tensor in state_dict.items()
        if name.startswith(BACKBONE_PREFIXES) and not name.startswith(FRESH_PREFIX)
    }
    fresh, unexpected = network.load_state_dict(loaded, strict=False)
    if unexpected:
        raise ValueError(f"state_dict must fit the backbone, got tensors it does not have: {_some(unexpected)}")
    parameters = sum(tensor.numel() for tensor in loaded.values())
    return [
        f"loaded {len(loaded)} tensors ({parameters:,} weights): {', '.join(_modules(loaded))}",
        f"fresh {len(fresh)} tensors, which FLAVR does not have in this shape: {', '.join(_modules(fresh))}",
    ]


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} must be a file of tensors written by torch.save; it is not one, or it holds other Python objects, "
            "which are not read because they can run code"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{path} must be a file written by torch.save, but it cannot be read: {reason}") from None


def _state_dict(checkpoint: Any, path: Path) -> dict[str, torch.Tensor]:
    state_dict = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state_dict, Mapping) or not all(torch.is_tensor(tensor) for tensor in state_dict.values()):
        found = f"keys {_some(map(str, checkpoint))}" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"{path} must hold FLAVR's weights under the key 'state_dict', got {found}")
    return {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}


def _differences(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    expected = _expected_shapes(state_dict)
    got = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    wrong = [
        f"{name} {got[name]} instead of {shape}" for name, shape in expected.items() if got.get(name, shape) != shape
    ]
    problems = {"it lacks": missing, "it has tensors of another shape:": wrong, "FLAVR does not have its": unknown}
    return [f"{text} {_some(names)}" for text, names in problems.items() if names]


def _expected_shapes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the FLAVR with the width and the number of frames that the file appears to have."""
    width = state_dict["encoder.stem.0.bias"].numel() if "encoder.stem.0.bias" in state_dict else 64
    outputs = state_dict["outconv.1.bias"].numel() if "outconv.1.bias" in state_dict else COLOURS
    with torch.device("meta"):
        flavr = FLAVR(COLOURS, max(1, outputs // COLOURS), max(1, width))
    return {name: tuple(tensor.shape) for name, tensor in flavr.state_dict().items()}


def _modules(names: Iterable[str]) -> list[str]:
    """First two parts of the names, each once, in order."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
