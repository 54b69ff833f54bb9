"""REHRSeg for nnU-Net v2: high-resolution segmentation from thick-slice MRI, without high-resolution training data.

The names below are for scripts and notebooks. Each is imported when it is first used, because nnU-Net and PyTorch take
seconds to import and `rehrseg --help` needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rehrseg_nnunet.config.presets import apply_preset, load_preset, preset_names
    from rehrseg_nnunet.evaluation.compare import evaluate_case, evaluate_folders
    from rehrseg_nnunet.evaluation.metrics import dice, psnr, ssim, volume_bias
    from rehrseg_nnunet.evaluation.surfaces import assd, hd95, nsd
    from rehrseg_nnunet.nnunet.whole_files import UnusableImageError, UnwrittenFileError
    from rehrseg_nnunet.prediction.api import Model, Prediction, load_model, predict
    from rehrseg_nnunet.prediction.model_folder import Wanted
    from rehrseg_nnunet.prediction.predictor import HRPredictor
    from rehrseg_nnunet.slices.geometry import sr_factor
    from rehrseg_nnunet.slices.grids import Grid
    from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
    from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, interpolate, interpolate_logits

    __version__: str

__all__ = [
    "Grid",
    "HRPredictor",
    "Model",
    "Prediction",
    "UnusableImageError",
    "UnwrittenFileError",
    "Wanted",
    "__version__",
    "apply_preset",
    "assd",
    "degrade",
    "degrade_labels",
    "dice",
    "evaluate_case",
    "evaluate_folders",
    "hd95",
    "interpolate",
    "interpolate_labels",
    "interpolate_logits",
    "load_model",
    "load_preset",
    "nsd",
    "predict",
    "preset_names",
    "psnr",
    "sr_factor",
    "ssim",
    "volume_bias",
]

_MODULES = {
    "config.presets": ("apply_preset", "load_preset", "preset_names"),
    "evaluation.compare": ("evaluate_case", "evaluate_folders"),
    "evaluation.metrics": ("dice", "psnr", "ssim", "volume_bias"),
    "evaluation.surfaces": ("assd", "hd95", "nsd"),
    "nnunet.whole_files": ("UnusableImageError", "UnwrittenFileError"),
    "prediction.api": ("Model", "Prediction", "load_model", "predict"),
    "prediction.model_folder": ("Wanted",),
    "prediction.predictor": ("HRPredictor",),
    "slices.geometry": ("sr_factor",),
    "slices.grids": ("Grid",),
    "slices.shape_interpolation": ("interpolate_labels",),
    "slices.slice_profile": ("degrade", "degrade_labels", "interpolate", "interpolate_logits"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rehrseg-nnunet")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
