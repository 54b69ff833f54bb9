"""A low-field twin of a scan: what a weaker scanner would have given of the same head; pure functions.

    x = | F^-1 [ W(k) ( F[ b(r) phi(y(r)) ] + n(k) ) ] |

y is the better scan, phi the loss of contrast, b the bias field, W the low-field scan's window in k-space, n complex
white noise, so that x has Rician noise. Labels are never used: they would print the answer into the image.

*Convention* Volumes are (D, H, W) magnitude images in any unit: twice the image has twice the twin. The low-field scan
has voxels of `resolution_mm` and is zero-filled to the grid of y: all of k-space beyond 1 / (2 resolution_mm) is 0.
Fourier transforms are unitary. Beyond the volume the image is mirrored, so that its two ends do not meet.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

TAPER = 0.5  # share of the window's half width that falls off, as a cosine: 0 rings, 1 (Hann) blurs most
AIR = 0.25  # of the mean of the head: what is darker loses no contrast, since air is black in every scanner
SIGNAL_PERCENTILE = 90  # of the head: white matter in T1-weighted scans
PADDING = 4  # voxels of the low-field scan by which the image is mirrored
BIAS_ORDER = 3


@dataclass(frozen=True)
class LowField:
    """A weaker scanner.

    Attributes:
        resolution_mm: its voxels' edge; an axis along which the better scan's voxels are longer stays as it is.
        snr: 90th percentile of the head over the standard deviation of the noise in either part of the complex image.
        contrast: share of the contrast between tissues that is left, 0 to 1.
        gamma: exponent of the intensities, 1 for none.
        bias: largest deviation of the bias field's logarithm from its mean.
    """

    resolution_mm: float
    snr: float
    contrast: float
    gamma: float = 1.0
    bias: float = 0.2

    def __post_init__(self) -> None:
        for name in ("resolution_mm", "snr", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {getattr(self, name)}")
        if not 0 < self.contrast <= 1:
            raise ValueError(f"contrast must be above 0 and at most 1, got {self.contrast}")
        if not 0 <= self.bias < math.inf:
            raise ValueError(f"bias must be at least 0, got {self.bias}")


def case_generator(seed: int, case: str) -> np.random.Generator:
    """Random numbers of one case: a scan has one noise, in whichever dataset and order it is simulated.

    Example:
        >>> [int(case_generator(0, case).integers(1000)) for case in "aba"]
        [841, 739, 841]
    """
    digest = hashlib.sha256(f"{seed} {case}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def low_field_twin(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    scanner: LowField,
    *,
    head: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """The low-field twin x of a better scan y.

    Args:
        image: (D, H, W) y, no value below 0.
        spacing_mm: of its voxels.
        scanner: the weaker scanner.
        head: (D, H, W) true in the head; percentile and mean are taken there.
        random: of this case; noise and bias field are drawn from it.

    Returns:
        (D, H, W) float32.
    """
    values = image.astype(np.float32)
    field = bias_field(values.shape, draw_bias(random), amplitude=scanner.bias)
    clean = field * lose_contrast(
        values, pivot=float(values[head].mean()), contrast=scanner.contrast, gamma=scanner.gamma
    )
    noise_std = float(np.percentile(clean[head], SIGNAL_PERCENTILE)) / scanner.snr
    padding = [(width, width) for width in padding_voxels(values.shape, spacing_mm, scanner.resolution_mm)]
    padded = np.pad(clean, padding, mode="symmetric")
    window = k_space_window(padded.shape, spacing_mm, scanner.resolution_mm)
    twin = acquire(padded, window, noise=draw_noise(random, window, noise_std))
    return twin[tuple(slice(before, before + size) for (before, _), size in zip(padding, values.shape, strict=True))]


def lose_contrast(values: np.ndarray, *, pivot: float, contrast: float, gamma: float = 1.0) -> np.ndarray:
    """phi: a rising curve through 0 and the pivot that leaves a share of the contrast around the pivot.

    Above `AIR` of the pivot it is the line pivot + contrast (value - pivot), below it the line to 0; a power of both
    follows.

    Args:
        values: intensities, none below 0.
        pivot: the intensity that stays, above 0.
        contrast: the slope at the pivot, above 0 and at most 1.
        gamma: exponent, above 0.

    Example:
        >>> lose_contrast(np.array([0.0, 50.0, 100.0, 120.0]), pivot=100.0, contrast=0.5)
        array([  0.,  75., 100., 110.])
    """
    corner = AIR * pivot
    at_corner = pivot + contrast * (corner - pivot)
    curve = np.where(values < corner, values * (at_corner / corner), pivot + contrast * (values - pivot))
    return curve if gamma == 1 else pivot * (curve / pivot) ** gamma


def draw_bias(random: np.random.Generator) -> np.ndarray:
    """Coefficients of a bias field, one for each product of powers up to `BIAS_ORDER` in all."""
    return random.standard_normal(len(_powers()))


def _powers() -> list[tuple[int, ...]]:
    orders = itertools.product(range(BIAS_ORDER + 1), repeat=3)
    return [powers for powers in orders if 0 < sum(powers) <= BIAS_ORDER]


def bias_field(shape: Sequence[int], coefficients: np.ndarray, *, amplitude: float) -> np.ndarray:
    """b: the exponential of a polynomial of order 3, mean of the logarithm 0, its largest deviation the amplitude.

    Args:
        shape: (D, H, W).
        coefficients: from `draw_bias`.
        amplitude: 0 gives 1 everywhere.

    Returns:
        (D, H, W) float32.
    """
    # order 1, 2, ... of each axis from -1 to 1, broadcast
    axes = [np.linspace(-1, 1, size, dtype=np.float32).reshape(np.roll((-1, 1, 1), a)) for a, size in enumerate(shape)]
    logarithm = np.zeros(tuple(shape), dtype=np.float32)
    for coefficient, powers in zip(coefficients, _powers(), strict=True):
        terms = [axis**power for axis, power in zip(axes, powers, strict=True)]
        logarithm += np.float32(coefficient) * terms[0] * terms[1] * terms[2]
    logarithm -= logarithm.mean()
    largest = float(np.abs(logarithm).max())
    return np.exp(logarithm * np.float32(amplitude / largest if largest else 0.0))


def padding_voxels(shape: Sequence[int], spacing_mm: Sequence[float], resolution_mm: float) -> list[int]:
    """By how many voxels to mirror a volume on either side of each axis; by none where k-space stays whole."""
    return [
        min(size, math.ceil(PADDING * resolution_mm / spacing)) if resolution_mm > spacing else 0
        for size, spacing in zip(shape, spacing_mm, strict=True)
    ]


def k_space_window(
    shape: Sequence[int], spacing_mm: Sequence[float], resolution_mm: float, *, taper: float = TAPER
) -> np.ndarray:
    """W: what a scan with larger voxels has of k-space; 1 in the middle, falling to 0 at 1 / (2 resolution_mm).

    Along an axis with longer voxels than that it is 1. The point spread function's width at half of its height is 1.21
    times the resolution for taper 0, 1.57 for 0.5, 2 for 1 (Hann).

    Args:
        shape: (D, H, W).
        spacing_mm: of the grid.
        resolution_mm: voxels of the low-field scan.
        taper: share of the half width that falls off.

    Returns:
        (D, H, W) float32, in the order of `fft.fftfreq`.
    """
    window = np.ones((1, 1, 1), dtype=np.float32)
    for axis, (size, spacing) in enumerate(zip(shape, spacing_mm, strict=True)):
        profile = np.ones(size)
        if resolution_mm > spacing:
            place = np.abs(fft.fftfreq(size, d=spacing)) * 2 * resolution_mm  # 1 at the edge
            falling = np.clip((place - (1 - taper)) / taper if taper else (place > 1).astype(float), 0, 1)
            profile = 0.5 * (1 + np.cos(np.pi * falling))
        window = window * profile.astype(np.float32).reshape(np.roll((-1, 1, 1), axis))
    return window


def draw_noise(random: np.random.Generator, window: np.ndarray, std: float) -> np.ndarray:
    """n: complex white noise in k-space, of which the window leaves a standard deviation in the image.

    Args:
        random: source of random numbers.
        window: (D, H, W) W.
        std: of the real and of the imaginary part of the image, behind the window.

    Returns:
        (D, H, W) complex64.
    """
    white = std / math.sqrt(float(np.mean(window**2, dtype=np.float64)))
    parts = random.standard_normal((2, *window.shape), dtype=np.float32) * np.float32(white)
    return parts[0] + 1j * parts[1]


def acquire(clean: np.ndarray, window: np.ndarray, *, noise: np.ndarray) -> np.ndarray:
    """x: the magnitude of what is left of k-space.

    Args:
        clean: (D, H, W) b phi(y).
        window: (D, H, W) W.
        noise: (D, H, W) n.

    Returns:
        (D, H, W) float32.
    """
    spectrum = fft.fftn(clean.astype(np.float32), norm="ortho")
    seen = fft.ifftn(window * (spectrum + noise), norm="ortho")
    return np.abs(np.asarray(seen)).astype(np.float32)
