"""Plan the network of quality mode: nnU-Net's planner, asked about thin slices."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rehrseg_nnunet.config.presets import scale_width
from rehrseg_nnunet.config.rehrseg import BLOCK, load_config

LOADING_PROCESSES = "nnUNet_n_proc_DA"


def plan_thin_input(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Plans whose `rehrseg` blocks have `input: thin` and its network.

    The planner that made the plans is asked for patch, batch and network at the thin slices' spacing and median shape,
    with its default memory target. The network gets the width that a preset gave to that of thick slices.

    Args:
        plans: plans with blocks, not changed.

    Raises:
        ValueError: the planner's network is not one that REHRSeg takes.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    result = copy.deepcopy(dict(plans))
    manager = PlansManager(copy.deepcopy(result))
    planner = manager.experiment_planner_class(manager.dataset_name)
    for name, configuration in result["configurations"].items():
        if BLOCK not in configuration:
            continue
        resolved = manager.get_configuration(name).configuration
        segmentation = configuration[BLOCK].setdefault("segmentation", {})
        segmentation.update(input="thin", thin=_thin_network(planner, resolved))
        load_config({**resolved, BLOCK: configuration[BLOCK]})
    return result


def _thin_network(planner: Any, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What `segmentation.thin` holds for one configuration with thick slices."""
    factor = load_config({**configuration, BLOCK: _without_input(configuration[BLOCK])}).factor
    planned = _ask(planner, configuration, factor)
    slices, *in_plane = planned["patch_size"]
    architecture = planned["architecture"]
    width = configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] / planner.UNet_base_num_features
    scale_width(architecture["arch_kwargs"], width)
    return {
        "patch_size": [max(1, slices // factor), *in_plane],
        "batch_size": planned["batch_size"],
        "architecture": architecture,
    }


def _without_input(block: Mapping[str, Any]) -> dict[str, Any]:
    """The block before it asks for thin slices: plans may be planned again."""
    segmentation = {key: value for key, value in block.get("segmentation", {}).items() if key not in ("input", "thin")}
    return {**block, "segmentation": segmentation}


def _ask(planner: Any, configuration: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """nnU-Net's plan for the thin slices of a configuration, as JSON has it."""
    import numpy as np
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    finer = np.array([factor, 1.0, 1.0])
    shape = np.array(configuration["median_image_size_in_voxels"]) * finer
    with planning_threads():
        planned = planner.get_plans_for_configuration(
            np.array(configuration["spacing"]) / finer,
            shape,
            configuration["data_identifier"],
            float(np.prod(shape)) * planner.dataset_json["numTraining"],
            {},
        )
    recursive_fix_for_json_export(planned)
    return planned


@contextmanager
def planning_threads() -> Iterator[None]:
    """nnU-Net's planners take the number of loading processes for one of threads, which must not be 0."""
    before = os.environ.get(LOADING_PROCESSES)
    if before == "0":
        os.environ[LOADING_PROCESSES] = "1"
    try:
        yield
    finally:
        if before == "0":
            os.environ[LOADING_PROCESSES] = before
