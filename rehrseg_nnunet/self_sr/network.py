"""Stage 1's network: FLAVR's backbone with the uncertainty-aware super-resolution (UASR) head, paper Eq. 2-5.

Convention:
    A window holds four neighbouring LR slices 0..3, (B, C, 4, H, W). The network predicts the r HR slices from HR
    index r*k + floor(r/2) on, k and k+1 being the two middle slices 1 and 2: target j lies at the fraction
    t_j = (floor(r/2) + j - (r - 1)/2) / r of the way from slice 1 (t = 0) to slice 2 (t = 1), because LR slice k is
    centred at HR coordinate r*k + (r - 1)/2. Even r: (j + 1/2)/r; odd r: j/r, so target 0 is slice 1's own centre.
    The plane may have any size; it is extended at its far ends by its edge pixels to the next multiple of 8 and cut
    back, so pixel (0, 0) stays where it is. Image channels are in the case's `IntensityUnit`, in and out: the network
    itself knows no scale, so what it says of a tissue does not depend on the crop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rehrseg_nnunet.config.rehrseg import ResolvedConfig
from rehrseg_nnunet.nnunet.precision import without_autocast
from rehrseg_nnunet.self_sr.flavr import (
    IN_PLANE_STRIDE,
    NEGATIVE_SLOPE,
    SLICES,
    ChannelGate,
    FLAVRDecoder,
    FLAVREncoder,
    merge_slices,
    split_slices,
)
from rehrseg_nnunet.self_sr.window_shapes import ShapeInterpolation

MODES = ("residual", "direct")
MIDDLE_SLICES = (1, 2)
# Candidate maps computed at once: as many as the backbone of the paper has features, so that no chunk needs more
# memory than the features it is computed from.
CHUNK_MAPS = 64
# Gates start at sigmoid(2) = 0.88.
OPEN_GATE = 2.0
# Units of intensity that the direct mode reaches on either side of the case's mean: tissue fills one.
DIRECT_REACH = 2.0
# Of what the weights mean. 2: intensities are in the case's unit, and U may be the labels' error. Weights of the first
# version (0.1.0) do not say it.
METHOD_VERSION, FIRST_VERSION = 2, 1


class SelfSROutput(NamedTuple):
    """What `SelfSRNetwork` predicts for the r HR slices of a window.

    Attributes:
        image: (B, image_channels, r, H, W), in the case's unit.
        labels: (B, label_channels, r, H, W), logits.
        uncertainty: U of Eq. 5, (B, 1, r, H, W), between 0 (certain) and 1.
    """

    image: torch.Tensor
    labels: torch.Tensor
    uncertainty: torch.Tensor


def target_fractions(factor: int, *, like: torch.Tensor) -> torch.Tensor:
    """t_j of the r target slices between the two middle slices (see the module's convention), shape (r,).

    Args:
        factor: r.
        like: tensor whose dtype and device the result takes.
    """
    first = (factor // 2 - (factor - 1) / 2) / factor
    return torch.arange(factor, dtype=like.dtype, device=like.device) / factor + first


def interpolate_middle(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Linear interpolation of the two middle slices at the target positions.

    Args:
        image: (B, C, 4, H, W).
        factor: r.

    Returns:
        (B, C, r, H, W).
    """
    before, after = (image[:, :, index].unsqueeze(2) for index in MIDDLE_SLICES)
    t = target_fractions(factor, like=image).view(-1, 1, 1)
    return torch.lerp(before, after, t)


class SliceInterpolation(nn.Module):
    """Interpolation of a window at the target positions by four taps per target slice, which are trained.

    It starts as `interpolate_middle`. The taps of a target slice always sum to 1, so constants are kept and the result
    follows the window's scale and offset. Four trained numbers per slice undo much of the slice profile's blur, which
    the layers above need many steps to learn.

    Args:
        factor: r.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.change = nn.Parameter(torch.zeros(factor, SLICES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, 4, H, W) to (B, C, r, H, W)."""
        change = self.change - self.change.mean(dim=1, keepdim=True)
        with without_autocast(image.device.type):  # intensities that are not normalised can overflow in float16
            trained = torch.einsum("rs,bcshw->bcrhw", change, image)
        return interpolate_middle(image, self.factor) + trained


class UASRHead(nn.Module):
    """Uncertainty-aware super-resolution head (Eq. 2-5): attention over N candidate images and label maps.

    Args:
        features: channels of the decoder's features.
        image_channels: images per candidate.
        label_channels: label maps per candidate.
        factor: r.
        candidates: N.
    """

    def __init__(
        self, features: int, image_channels: int, label_channels: int, *, factor: int, candidates: int
    ) -> None:
        super().__init__()
        self.factor = factor
        self.fuse = nn.Conv2d(SLICES * features, factor * features, 3, padding=1)
        self.image_branch = nn.Conv3d(features, candidates * image_channels, 1)
        self.label_branch = nn.Conv3d(features, candidates * label_channels, 1)
        self.attention_branch = nn.Conv3d(features, candidates, 1)
        self.uncertainty = nn.Conv3d(candidates, 1, 1)
        # Training starts from the interpolation (the constant, in direct mode) and from U close to 1/2.
        start_at_zero(self.image_branch)
        zero_bias(self.uncertainty)

    def forward(self, features: torch.Tensor) -> SelfSROutput:
        """Apply Eq. 2-5.

        Args:
            features: F_o, (B, features, 4, H, W).

        Returns:
            The mixture of tanh(P_I), in (-1, 1) and without a unit yet, in place of the image; labels; U.
        """
        merged = functional.leaky_relu(self.fuse(merge_slices(features)), NEGATIVE_SLOPE)
        fused = split_slices(merged, self.factor)
        attention = self.attention_branch(fused).softmax(dim=1)
        candidates = attention.shape[1]
        return SelfSROutput(
            mix_candidates(fused, attention, self.image_branch, bounded=True),
            mix_candidates(fused, attention, self.label_branch, bounded=False),
            # softmax leaves mixed precision; in float16 the sigmoid would reach 1, and lose its gradient, at 8
            # Attention averages 1/N: brought to an average of 1, U's few weights train at the pace of the others.
            self.uncertainty(candidates * attention).to(attention.dtype).sigmoid(),
        )


def mix_candidates(
    features: torch.Tensor, attention: torch.Tensor, branch: nn.Conv3d, *, bounded: bool
) -> torch.Tensor:
    """Sum over the candidates of attention times candidate map (Eq. 4), a few candidates at a time.

    N candidates times the heads at r times the slices would be the largest tensor of the network by far. Where one
    chunk does not hold them all, only the chunk at hand exists, in training too: the backward pass computes it again.

    Args:
        features: F_m, (B, F, r, H, W).
        attention: P_A, (B, N, r, H, W), sum 1 over N.
        branch: 1x1x1 convolution to N*C channels, the C maps of a candidate side by side.
        bounded: pass the candidates through tanh (images).

    Returns:
        (B, C, r, H, W).
    """
    candidates = attention.shape[1]
    heads = branch.out_channels // candidates
    per_chunk = max(1, CHUNK_MAPS // heads)
    if per_chunk >= candidates:
        return _mix(features, attention, branch.weight, branch.bias, bounded)
    total = features.new_zeros(())
    for start in range(0, candidates, per_chunk):
        chosen = slice(start, start + per_chunk)
        maps = slice(start * heads, (start + per_chunk) * heads)
        bias = None if branch.bias is None else branch.bias[maps]
        arguments = (features, attention[:, chosen], branch.weight[maps], bias, bounded)
        total = total + checkpoint(_mix, *arguments, use_reentrant=False)
    return total


def _mix(
    features: torch.Tensor, attention: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, bounded: bool
) -> torch.Tensor:
    maps = functional.conv3d(features, weight, bias)
    if bounded:
        maps = maps.tanh()
    return (attention.unsqueeze(2) * maps.unflatten(1, (attention.shape[1], -1))).sum(dim=1)


def start_at_zero(branch: nn.Conv3d) -> None:
    """Weights so small, in place, that the branch adds next to nothing to what it is a residual to."""
    nn.init.normal_(branch.weight, std=1e-2)
    zero_bias(branch)


def zero_bias(layer: nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d) -> None:
    """No bias, in place, where the layer has one."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def initialise(module: nn.Module) -> None:
    """He-normal convolutions and open gates, in place.

    Without normalisation layers, torch's default weights and half-closed gates let the features fade to 1/100 by the
    end of the decoder, and training from scratch spends its first epochs on growing them back.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            zero_bias(layer)
    for layer in module.modules():
        if isinstance(layer, ChannelGate):
            nn.init.constant_(layer.attn_layer[0].bias, OPEN_GATE)  # pyright: ignore[reportArgumentType] # of a Conv3d


class SelfSRNetwork(nn.Module):
    """Self-super-resolution of annotated windows (paper sections 3.2 and 3.4).

    `encoder` and `decoder` have FLAVR's parameter names, so that all of a published checkpoint but its stem and what
    follows the decoder can be loaded (`rehrseg_nnunet.self_sr.flavr_checkpoint`).

    The head's mixture of images is bounded by 1, in the unit of the case:

    - "residual": interpolation of the window + mixture. The interpolation starts as the linear one of the two middle
      slices (`SliceInterpolation`); a unit is the case's range of tissue, more than deblurring needs.
    - "direct" (Eq. 4): `DIRECT_REACH` * mixture.

    Labels likewise, as logits: "residual" adds the mixture to the interpolated shapes of the window's labels
    (`ShapeInterpolation`), "direct" (Eq. 4) is the mixture alone.

    Attributes:
        version: `METHOD_VERSION`, among the weights, so that those of another version do not load silently.

    Args:
        image_channels: image channels, which come first in a window.
        label_channels: label heads (one-hot labels or regions), which follow and are not normalised.
        factor: r.
        base_features: width of the backbone; 64 is FLAVR's.
        candidates: N.
        image_mode: "residual" or "direct".
        label_mode: "residual" or "direct".
        smooth_upsampling: no checkerboard, see `GatedUpConv`.

    Raises:
        ValueError: an impossible size or an unknown mode.
    """

    def __init__(
        self,
        image_channels: int,
        label_channels: int,
        factor: int,
        *,
        base_features: int = 64,
        candidates: int = 16,
        image_mode: str = "residual",
        label_mode: str = "residual",
        smooth_upsampling: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"image_channels": image_channels, "label_channels": label_channels, "base_features": base_features}
        for name, value in (sizes | {"candidates": candidates}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if factor < 2:
            raise ValueError(f"factor must be at least 2, got {factor}")
        for name, mode in (("image_mode", image_mode), ("label_mode", label_mode)):
            if mode not in MODES:
                raise ValueError(f"{name} must be one of {MODES}, got {mode!r}")
        self.image_channels = image_channels
        self.label_channels = label_channels
        self.factor = factor
        self.base_features = base_features
        self.image_mode, self.label_mode = image_mode, label_mode
        self.register_buffer("version", torch.tensor(METHOD_VERSION))
        if image_mode == "residual":
            self.interpolation = SliceInterpolation(factor)
        self.encoder = FLAVREncoder(image_channels + label_channels, base_features=base_features)
        self.decoder = FLAVRDecoder(base_features=base_features, smooth=smooth_upsampling)
        self.head = UASRHead(base_features, image_channels, label_channels, factor=factor, candidates=candidates)
        for part in (self.encoder, self.decoder, self.head.fuse):
            initialise(part)
        if label_mode == "residual":
            self.shapes = ShapeInterpolation(factor)
            start_at_zero(self.head.label_branch)

    def forward(self, window: torch.Tensor) -> SelfSROutput:
        """Predict the r HR slices between the two middle slices.

        Args:
            window: (B, image_channels + label_channels, 4, H, W), floating point, H and W at least 1, image channels
                in the case's unit.

        Returns:
            Image, label logits and uncertainty, in the window's dtype.

        Raises:
            ValueError: a window of another shape.
        """
        height, width = self._check(window)
        image = window[:, : self.image_channels]
        mixture, labels, uncertainty = (
            t[..., :height, :width].to(window.dtype) for t in self.head(self.decoder(self.encoder(_extend(window))))
        )
        image = self.interpolation(image) + mixture if self.image_mode == "residual" else DIRECT_REACH * mixture
        if self.label_mode == "residual":
            labels = labels + self.shapes(window[:, self.image_channels :])
        return SelfSROutput(image, labels, uncertainty)

    def layer1_features(self, window: torch.Tensor) -> torch.Tensor:
        """The encoder's layer-1 features, the teacher of the structural distillation (paper section 3.5).

        The plane is extended as in `forward`. Feature (y, x) is centred on pixel
        (2y, 2x), as in any network that strides with odd kernels; features of the extension are cut off.

        Args:
            window: as for `forward`.

        Returns:
            (B, base_features, 4, ceil(H/2), ceil(W/2)).

        Raises:
            ValueError: a window of another shape.
        """
        height, width = self._check(window)
        return self.encoder.layer1_features(_extend(window))[..., : (height + 1) // 2, : (width + 1) // 2]

    def _check(self, window: torch.Tensor) -> tuple[int, int]:
        channels = self.image_channels + self.label_channels
        if window.ndim != 5 or window.shape[1:3] != (channels, SLICES) or 0 in window.shape[3:]:
            raise ValueError(f"window must be (B, {channels}, {SLICES}, H, W), got {tuple(window.shape)}")
        return window.shape[3], window.shape[4]


def _extend(window: torch.Tensor) -> torch.Tensor:
    """Edge pixels repeated at the plane's far ends, to a size that the encoder can stride."""
    height, width = window.shape[3:]
    padding = (0, -width % IN_PLANE_STRIDE, 0, -height % IN_PLANE_STRIDE, 0, 0)
    return functional.pad(window, padding, mode="replicate")


def build_self_sr_network(config: ResolvedConfig, image_channels: int, label_channels: int) -> SelfSRNetwork:
    """The network that a `rehrseg` block describes.

    Args:
        config: what `rehrseg_nnunet.config.rehrseg.load_config` returned.
        image_channels: number of image channels, `len(normalization_schemes)`.
        label_channels: `label_manager.num_segmentation_heads`.

    Raises:
        ValueError: see `SelfSRNetwork`.
    """
    return SelfSRNetwork(
        image_channels,
        label_channels,
        config.factor,
        base_features=config.self_sr.base_features,
        candidates=config.self_sr.candidates,
        image_mode=config.self_sr.image_mode,
        label_mode=config.self_sr.label_mode,
        smooth_upsampling=config.self_sr.smooth_upsampling,
    )
