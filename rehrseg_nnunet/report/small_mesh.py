"""Surfaces as small as a page needs them, in NiiVue's own format."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass, replace

import numpy as np

_HEADER = struct.Struct("<HHIII")  # magic, what follows, faces, vertices, bytes to skip
_MAGIC, _FACES_AND_VERTICES = 23117, 3
_STEPS_PER_MM = 64  # vertices are rounded: rounded numbers take less room
_COARSER = 1.4
_FEWEST_FACES = 200


@dataclass(frozen=True, eq=False)
class SmallMesh:
    """A surface to look at.

    Attributes:
        vertices: (N, 3), RAS mm.
        faces: (M, 3) indices of vertices, counterclockwise seen from outside.
        halvings: how often it was made coarser.
    """

    vertices: np.ndarray
    faces: np.ndarray
    halvings: int = 0

    def encoded(self) -> bytes:
        """The surface as a gzipped MZ3 file."""
        rounded = np.rint(self.vertices * _STEPS_PER_MM) / _STEPS_PER_MM
        header = _HEADER.pack(_MAGIC, _FACES_AND_VERTICES, len(self.faces), len(self.vertices), 0)
        content = header + self.faces.astype("<u4").tobytes() + rounded.astype("<f4").tobytes()
        return gzip.compress(content, mtime=0)

    def coarser(self) -> SmallMesh | None:
        """The surface with about half the triangles: vertices in one cell of a grid become their mean; None if few."""
        if len(self.faces) < _FEWEST_FACES:
            return None
        first, second = self.vertices[self.faces[:, 0]], self.vertices[self.faces[:, 1]]
        cell = _COARSER * float(np.linalg.norm(first - second, axis=1).mean())
        _, owner = np.unique(np.floor(self.vertices / cell), axis=0, return_inverse=True)
        owner = owner.reshape(-1)
        counts = np.bincount(owner)
        means = np.stack([np.bincount(owner, weights=part) / counts for part in self.vertices.T], axis=1)
        faces = owner[self.faces]
        a, b, c = faces.T
        faces = faces[(a != b) & (b != c) & (a != c)]
        if not 0 < len(faces) < len(self.faces):
            return None
        return replace(self, vertices=means, faces=faces, halvings=self.halvings + 1)
