"""The slice profile: linear operators along one axis that thicken slices (degrade) and interpolate them.

Convention:
    LR slice k is the HR volume weighted by a Gaussian h centred at HR coordinate r*k + (r - 1)/2, FWHM = r HR voxels,
    4r taps (4r + 1 for odd r, where the centre is a voxel, so that the taps are symmetric), renormalised over the
    slices inside the volume (so constants are kept up to the border). Coordinates count voxel centres from 0.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

from rehrseg_nnunet.slices.geometry import hr_slice_positions

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def half_support(factor: int) -> int:
    """HR slices of context that `degrade` looks at beyond the r slices of an LR slice, on either side."""
    return math.ceil(1.5 * factor)


@lru_cache(maxsize=32)
def slice_profile(factor: int) -> torch.Tensor:
    """Gaussian profile h (paper section 3.2): FWHM = `factor` HR voxels, symmetric, sum 1, float64.

    Returns:
        (taps,) weights; taps = 4r for even r, 4r + 1 for odd r, centred on the LR slice's centre.

    Raises:
        ValueError: factor is not an integer of at least 2.
    """
    if int(factor) != factor or factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor}")
    taps = 4 * factor if factor % 2 == 0 else 4 * factor + 1
    offsets = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    weights = torch.exp(-0.5 * (offsets * FWHM_PER_SIGMA / factor) ** 2)
    return weights / weights.sum()


def degrade(volume: torch.Tensor, factor: int, axis: int, *, context: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Blur with the slice profile and keep every r-th slice (Eq. 1, image).

    Args:
        volume: float tensor of any number of dimensions; `volume.shape[axis]` without the context must be a multiple of
            `factor`.
        factor: r.
        axis: the slice axis; negative values count from the end.
        context: HR slices at the start and at the end that belong to no thick slice of the result, but were there when
            it was acquired: the profiles of the outer thick slices reach into them. (A phase leaves such slices.)

    Returns:
        Tensor with r times fewer slices along `axis`, same dtype and device.

    Raises:
        ValueError: integer tensor, or a slice count that is no multiple of r.

    Example:
        A ramp stays a ramp, r times as steep per slice (at the borders the profile is cut off):

        >>> degrade(torch.arange(32.0), 4, axis=0)[2:-2]
        tensor([ 9.5000, 13.5000, 17.5000, 21.5000])
        >>> degrade(torch.arange(16.0), 4, axis=0, context=(6, 6))  # one thick slice, from slice 6 on
        tensor([7.5000])
    """
    if not torch.is_floating_point(volume):
        raise ValueError(f"volume must be a floating point tensor, got {volume.dtype}")
    slices = volume.shape[axis] - sum(context)
    if slices <= 0 or slices % factor:
        raise ValueError(f"the number of slices must be a multiple of factor {factor}, got {slices}")
    weights, before, thick_slices = slice_profile(factor), context[0], slices // factor
    thick = _blur_and_decimate(volume.movedim(axis, 0), weights, factor, before, thick_slices).movedim(0, axis)
    ones = torch.ones(volume.shape[axis], dtype=torch.float64)
    inside = _blur_and_decimate(ones, weights, factor, before, thick_slices).to(volume)
    return thick / inside.view(-1, *[1] * (volume.ndim - 1 - axis % volume.ndim))


def _blur_and_decimate(
    volume: torch.Tensor, weights: torch.Tensor, factor: int, before: int, thick_slices: int
) -> torch.Tensor:
    """Strided convolution along axis 0 with zeros outside, tap by tap: no copy of the volume is made."""
    shift = before - (len(weights) - factor) // 2  # where the first thick slice's first tap lies
    thick = torch.zeros((thick_slices, *volume.shape[1:]), dtype=volume.dtype, device=volume.device)
    for tap, weight in enumerate(weights.tolist()):
        first = max(0, -((tap + shift) // factor))  # first thick slice whose tap lies inside the volume
        start = first * factor + tap + shift
        if start < volume.shape[0] and first < thick_slices:
            taken = volume[start::factor][: thick_slices - first]
            thick[first : first + taken.shape[0]].add_(taken, alpha=weight)
    return thick


def degrade_labels(labels: torch.Tensor, factor: int, axis: int, *, upper_ties: bool = False) -> torch.Tensor:
    """Label map on thick slices: the label at each thick slice's centre (Eq. 1 decimates labels unblurred).

    For even r the two central HR slices vote, ties decided by the next ones out. Where all of them leave it open
    (mostly: the boundary passes through the centre) it is the label of the lower or the upper central slice.

    Args:
        labels: integer label map of any number of dimensions, the slice count along `axis` a multiple of `factor`.
        factor: r.
        axis: the slice axis.
        upper_ties: such ties go to the central slice with the larger HR index. One side always keeps a structure's
            volume but moves it by up to half an HR voxel against the image, which networks learn and interpolation
            cannot know: whoever degrades many cases lets the sides take turns.

    Returns:
        Label map with r times fewer slices, same dtype.

    Raises:
        ValueError: a slice count that is no multiple of r.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
        >>> degrade_labels(labels, 4, axis=0)  # what the two central of four HR slices say
        tensor([0, 1])
        >>> tie = torch.tensor([0, 0, 1, 1])
        >>> degrade_labels(tie, 4, axis=0), degrade_labels(tie, 4, axis=0, upper_ties=True)
        (tensor([0]), tensor([1]))
    """
    slices = labels.shape[axis]
    if slices == 0 or slices % factor:
        raise ValueError(f"the number of slices must be a multiple of factor {factor}, got {slices}")
    groups = labels.movedim(axis, -1).unflatten(-1, (slices // factor, factor))
    centre = groups[..., factor // 2] if factor % 2 else _vote_outwards(groups, factor, upper_ties=upper_ties)
    return centre.movedim(-1, axis).contiguous()


def _vote_outwards(groups: torch.Tensor, factor: int, *, upper_ties: bool) -> torch.Tensor:
    """Label at the centre of groups (..., D, r), r even: the first pair outwards whose voters decide."""
    left, right = groups[..., factor // 2 - 1], groups[..., factor // 2]
    result, open_ = (right if upper_ties else left).clone(), left != right
    left_votes, right_votes = torch.zeros_like(left), torch.zeros_like(left)
    for step in range(1, factor // 2):
        for voter in (groups[..., factor // 2 - 1 - step], groups[..., factor // 2 + step]):
            left_votes += (voter == left).to(left_votes.dtype)
            right_votes += (voter == right).to(right_votes.dtype)
        decided = open_ & (left_votes != right_votes)
        result = torch.where(decided, torch.where(right_votes > left_votes, right, left), result)
        open_ = open_ & ~decided
    return result


def apply_along(volume: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Apply a linear operator (out, in) along one axis of a float tensor."""
    return (volume.movedim(axis, -1) @ matrix.to(device=volume.device, dtype=volume.dtype).T).movedim(-1, axis)


@lru_cache(maxsize=128)
def interpolation_matrix(lr_slices: int, factor: int, order: int) -> torch.Tensor:
    """Matrix (r*D, D), float64, that interpolates D slices at the HR slice centres.

    Args:
        lr_slices: D.
        factor: r.
        order: spline order, 0 (nearest; ties to the upper slice), 1 (linear) or 3 (cubic B-spline, linear for fewer
            than 4 slices). Positions outside the first and last centre are extrapolated linearly from the border for
            orders 1 and 3 (a ramp stays a ramp), repeated for order 0 and for D = 1.

    Raises:
        ValueError: another order.
    """
    if order not in (0, 1, 3):
        raise ValueError(f"order must be 0, 1 or 3, got {order}")
    positions = hr_slice_positions(lr_slices, factor)
    if order == 0 or lr_slices == 1:
        nearest = np.clip(np.floor(positions + 0.5), 0, lr_slices - 1).astype(int)
        return torch.from_numpy(np.eye(lr_slices)[nearest])
    return _spline_matrix(lr_slices, positions, order)


def _spline_matrix(slices: int, positions: np.ndarray, order: int) -> torch.Tensor:
    """Matrix (len(positions), slices), float64, of a spline through 2 slices or more, straight beyond the ends."""
    degree = 3 if order == 3 and slices >= 4 else 1
    # the natural end condition makes the cubic spline run out in straight lines, which extrapolate without overshoot
    spline = make_interp_spline(np.arange(slices), np.eye(slices), k=degree, bc_type="natural" if degree == 3 else None)
    inside = np.clip(positions, 0, slices - 1)
    beyond = (positions - inside)[:, None]
    return torch.from_numpy(spline(inside) + beyond * spline(inside, nu=1))


@lru_cache(maxsize=128)
def spline_between_slices(slices: int, factor: int) -> torch.Tensor:
    """Matrix (r*(D - 1) + 1, D), float64: a cubic B-spline (linear below 4 slices) through slices that lie at r*k."""
    if slices == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    return _spline_matrix(slices, np.arange(factor * (slices - 1) + 1) / factor, 3)


def interpolate(volume: torch.Tensor, factor: int, axis: int, *, order: int = 3) -> torch.Tensor:
    """Interpolate an image to r times as many slices over the same field of view (see `interpolation_matrix`).

    Args:
        volume: float tensor of any number of dimensions.
        factor: r.
        axis: slice axis.
        order: 0, 1 or 3.

    Example:
        A ramp stays a ramp, also beyond the outer slices' centres:

        >>> interpolate(torch.tensor([0.0, 4.0]), 4, axis=0)
        tensor([-1.5000, -0.5000,  0.5000,  1.5000,  2.5000,  3.5000,  4.5000,  5.5000])
    """
    if not torch.is_floating_point(volume):
        raise ValueError(f"volume must be a floating point tensor, got {volume.dtype}")
    return apply_along(volume, interpolation_matrix(volume.shape[axis], factor, order), axis)


def interpolate_logits(logits: torch.Tensor, factor: int, axis: int) -> torch.Tensor:
    """Interpolate logits to r times as many slices over the same field of view: cubic B-spline through the slices.

    Near a boundary logits are much like a signed distance, so the boundary moves from slice to slice. Elsewhere they
    say how sure the network is, and how that changes towards the outer slices says nothing of what lies beyond: there
    the edge slices are repeated, as in the HR head. Between the outer centres a ramp stays a ramp.

    Args:
        logits: float tensor of any number of dimensions.
        factor: r.
        axis: slice axis.

    Example:
        >>> interpolate_logits(torch.tensor([0.0, 4.0]), 4, axis=0)
        tensor([0.0000, 0.0000, 0.5000, 1.5000, 2.5000, 3.5000, 4.0000, 4.0000])
    """
    return apply_along(logits, _logit_matrix(logits.shape[axis], factor), axis)


@lru_cache(maxsize=128)
def _logit_matrix(lr_slices: int, factor: int) -> torch.Tensor:
    """Matrix (r*D, D), float64."""
    if lr_slices == 1:
        return interpolation_matrix(1, factor, 3)
    return _spline_matrix(lr_slices, np.clip(hr_slice_positions(lr_slices, factor), 0, lr_slices - 1), 3)


def at_phase(volume: torch.Tensor, phase: int, factor: int, axis: int) -> torch.Tensor:
    """A thick-slice scan as if it had been acquired up to half a slice further along: cubic B-spline between slices.

    The slice profile has taken away most of what such a spline could not follow.

    Args:
        volume: float tensor of any number of dimensions, thick slices along `axis`, at least 2 if the phase is not 0.
        phase: HR slices that the new slices lie behind the old ones, -r/2 .. r/2.
        factor: r.
        axis: slice axis.

    Returns:
        As many slices, at k + phase / r; the volume itself for phase 0. The one slice that lies beyond an outer centre,
        but not outside the field of view, is extrapolated linearly: a ramp stays a ramp.

    Example:
        >>> at_phase(torch.tensor([0.0, 4.0, 8.0]), 1, 4, axis=0)  # one of four HR slices further along
        tensor([1., 5., 9.])
    """
    if phase == 0:
        return volume
    slices = volume.shape[axis]
    return apply_along(volume, _spline_matrix(slices, np.arange(slices) + phase / factor, 3), axis)


def back_project(volume: torch.Tensor, thick: torch.Tensor, factor: int, axis: int, *, steps: int) -> torch.Tensor:
    """Iterative back-projection: bring `degrade(volume)` closer to the acquired thick slices.

    Every step adds the interpolated (cubic B-spline) difference between the thick slices and the degraded volume. A
    volume that agrees with them stays as it is.

    Args:
        volume: float tensor of any number of dimensions, e.g. a super-resolved image.
        thick: the acquired image, r times fewer slices along `axis`.
        factor: r.
        axis: slice axis.
        steps: number of steps; 0 returns the volume.

    Example:
        >>> wrong = torch.zeros(8)
        >>> back_project(wrong, torch.tensor([1.0, 1.0]), 4, axis=0, steps=1)
        tensor([1., 1., 1., 1., 1., 1., 1., 1.])
    """
    for _ in range(steps):
        volume = volume + interpolate(thick - degrade(volume, factor, axis), factor, axis)
    return volume
