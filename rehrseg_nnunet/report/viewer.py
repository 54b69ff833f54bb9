"""The interactive viewer of the page: scan, labels, uncertainty and surfaces of a case in NiiVue.

Everything is in the page, because a page that is opened from disk may not load other files.

*Convention* NiiVue draws every image with the voxels of the first one. The first is therefore an empty image with the
finest voxels of the case; scan and labels are drawn on it voxel by voxel, acquired slices as thick as they are.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np

from rehrseg_nnunet.report.meshes import Mesh
from rehrseg_nnunet.report.volumes import Volume, blank, box_corners_mm, cropped, renumbered
from rehrseg_nnunet.slices.grids import LPS_RAS
from rehrseg_nnunet.surfaces.colours import colour
from rehrseg_nnunet.surfaces.read import read_surface

NIIVUE_FILE = "niivue-0.69.0.umd.js"
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MARGIN_MM = 15.0
_BYTES = 10_000_000  # of all cases in the page, as base64
_BYTES_A_CASE = 1_000_000
_MOST_VOXELS = 8_000_000  # of an image, for the memory of graphics cards
_MOST_LABELS = 255

Colour = tuple[int, int, int]
Part = Volume | Mesh


@dataclass(frozen=True, eq=False)
class ViewerLayer:
    """An image to lay over the scan.

    Attributes:
        title: of its checkbox.
        image: (I, J, K) on any grid; labels are integers, those below 1 background.
        kind: what the voxels are.
        colours: red, green, blue from 0 to 255 for each label; others are those of `surfaces.colours`.
    """

    title: str
    image: nibabel.Nifti1Image
    kind: Literal["labels", "uncertainty"]
    colours: Mapping[int, Colour] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ViewerCase:
    """What the viewer shows of a case.

    Attributes:
        name: of its button.
        scan: (I, J, K).
        layers: the first is shown at once, the others by their checkboxes.
        surfaces: files of this package, in mm of the scan's space; their names are shown.
    """

    name: str
    scan: nibabel.Nifti1Image
    layers: Sequence[ViewerLayer]
    surfaces: Sequence[Path] = ()


def viewer_html(cases: Sequence[ViewerCase]) -> str:
    """A part of a page that needs nothing else: buttons, one canvas, NiiVue, and the cases around their labels.

    Ten cases take at most about 11 MB, more cases not more: scans get 8 bits, then all gets coarser. The page says so.

    Args:
        cases: in the order of their buttons.

    Returns:
        HTML, empty without cases.

    Raises:
        ValueError: a surface cannot be read.
        RuntimeError: a package is missing that reads surfaces.
    """
    if not cases:
        return ""
    from jinja2 import Environment, PackageLoader

    data: dict[str, str] = {}
    budget = min(_BYTES_A_CASE, _BYTES // len(cases))
    described = [_described(case, f"viewer-{index}", data, budget) for index, case in enumerate(cases)]
    environment = Environment(loader=PackageLoader("rehrseg_nnunet.report"), autoescape=True, trim_blocks=True)
    return environment.get_template("viewer.html").render(
        cases=described,
        data=data,
        style=_data("viewer.css"),
        script=_data("viewer.js"),
        niivue=_niivue(),
        licences=_data("niivue-licences.txt"),
    )


def _data(name: str) -> str:
    return files("rehrseg_nnunet.report").joinpath("data", name).read_text(encoding="utf-8")


@cache
def _niivue() -> str:
    return _base64(gzip.compress(_data(NIIVUE_FILE).encode(), mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _described(case: ViewerCase, name: str, data: dict[str, str], budget: int) -> dict[str, object]:
    """What the script must know of a case; its files are added to `data`."""
    labels = [layer for layer in case.layers if layer.kind == "labels"]
    corners = [box_corners_mm(layer.image) for layer in labels]
    points = np.concatenate([np.empty((0, 3)), *corners])
    volumes = [cropped(case.scan, "scan", points, margin_mm=MARGIN_MM)]
    values = []
    for layer in case.layers:
        volume = cropped(layer.image, layer.kind, points, margin_mm=MARGIN_MM)
        values.append(_label_values(volume) if layer.kind == "labels" else [])
        volumes.append(renumbered(volume, values[-1]) if layer.kind == "labels" else volume)
    read = [read_surface(file) for file in case.surfaces]
    meshes = [Mesh(surface.vertices @ LPS_RAS[:3, :3], surface.faces) for surface, _ in read]

    parts = _fitted([*volumes, *meshes], budget)
    volumes = [part for part in parts if isinstance(part, Volume)]
    finest = min(volumes, key=lambda volume: float(np.prod(volume.spacing_mm)))
    keys = [f"{name}-{index}" for index in range(len(parts))]
    data.update({key: _base64(part.encoded()) for key, part in zip(keys, parts, strict=True)})
    data[f"{name}-grid"] = _base64(blank(finest).encoded())

    layers = [
        {"title": layer.title, "kind": layer.kind, "data": key, "window": volume.window, "colours": _table(layer, known)}
        for layer, key, volume, known in zip(case.layers, keys[1:], volumes[1:], values, strict=False)
    ]
    surfaces = [
        {"title": file.stem, "data": key, "colour": own or colour(index)}
        for index, (file, key, (_, own)) in enumerate(
            zip(case.surfaces, keys[len(volumes) :], read, strict=True)
        )
    ]
    return {
        "name": case.name,
        "grid": f"{name}-grid",
        "scan": {"data": keys[0], "window": volumes[0].window},
        "layers": layers,
        "surfaces": surfaces,
        "centre": _centre_mm(points, volumes[0]),
        "note": _note(parts, ["scan", *(layer.title for layer in case.layers), *(file.stem for file in case.surfaces)]),
    }


def _label_values(volume: Volume) -> list[int]:
    values = np.unique(volume.array)
    return [int(value) for value in values[values > 0]][:_MOST_LABELS]


def _table(layer: ViewerLayer, values: Sequence[int]) -> list[Colour]:
    return [layer.colours.get(value, colour(value - 1)) for value in values]


def _fitted(parts: list[Part], budget: int) -> list[Part]:
    """The parts, the largest made coarser until all together fit, or none can be."""
    parts = [_of_few_voxels(part) for part in parts]
    sizes = [_size(part) for part in parts]
    while sum(sizes) > budget:
        for index in np.argsort(sizes)[::-1]:
            smaller = parts[index].coarser()
            if smaller is not None:
                parts[index], sizes[index] = smaller, _size(smaller)
                break
        else:
            break
    return parts


def _of_few_voxels(part: Part) -> Part:
    while isinstance(part, Volume) and part.array.size > _MOST_VOXELS:
        part = part.coarser() or part
    return part


def _size(part: Part) -> int:
    return len(_base64(part.encoded()))


def _centre_mm(points: np.ndarray, scan: Volume) -> list[float]:
    if len(points):
        return ((points.min(axis=0) + points.max(axis=0)) / 2).tolist()
    middle = (np.array(scan.array.shape) - 1) / 2
    return nibabel.affines.apply_affine(scan.affine, middle).tolist()


def _note(parts: Sequence[Part], titles: Sequence[str]) -> str:
    """What was made coarser, for the reader."""
    coarse = [title for title, part in zip(titles, parts, strict=True) if part.halvings]
    return f"Coarser than the files, to keep this page small: {', '.join(coarse)}." if coarse else ""
