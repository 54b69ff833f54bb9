"""The interactive viewer of the page: scan, labels, uncertainty and surfaces of a case in NiiVue.

Everything is in the page, because a page that is opened from disk may not load other files.

*Convention* NiiVue draws every image with the voxels of the first one. The first is therefore an empty image with the
finest voxels of the case; scan and labels are drawn on it voxel by voxel, acquired slices as thick as they are.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from jinja2 import Environment, PackageLoader
from nibabel.affines import apply_affine

from rehrseg_nnunet.report.small_mesh import SmallMesh
from rehrseg_nnunet.report.small_volume import SmallVolume, blank, box_corners_mm, cropped, renumbered
from rehrseg_nnunet.slices.grids import LPS_RAS
from rehrseg_nnunet.surfaces.colours import colour
from rehrseg_nnunet.surfaces.read import read_surface

NIIVUE_FILE = "niivue-0.69.0.umd.js"
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MARGIN_MM = 15.0
_BYTES_A_CASE = 1_000_000  # as base64
_MOST_VOXELS = 8_000_000  # of an image, for the memory of graphics cards
_MOST_LABELS = 255

Colour = tuple[int, int, int]
Part = SmallVolume | SmallMesh


@dataclass(frozen=True, eq=False)
class ViewerLayer:
    """An image to lay over the scan.

    Attributes:
        title: of its checkbox.
        image: (I, J, K) on any grid; labels are integers, those below 1 background.
        kind: what the voxels are.
        colours: red, green, blue from 0 to 255 for each label; others are those of `surfaces.colours`.
        names: of labels, for the legend.
    """

    title: str
    image: nibabel.Nifti1Image
    kind: Literal["labels", "uncertainty"]
    colours: Mapping[int, Colour] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ViewerCase:
    """What the viewer shows of a case.

    Attributes:
        name: of its button.
        scan: (I, J, K); None if it is not known, and then there must be a layer.
        layers: the first is shown at once, the others by their checkboxes.
        surfaces: files of this package, in mm of the scan's space; their names are shown.
    """

    name: str
    scan: nibabel.Nifti1Image | None
    layers: Sequence[ViewerLayer]
    surfaces: Sequence[Path] = ()


class Viewer:
    """A part of a page that needs nothing else: buttons, one canvas, NiiVue, and the cases around their labels.

    NiiVue takes 1.1 MB of the page, each case at most about 1 MB. To that end scans get 8 bits, then everything gets
    coarser, and the page says so.
    """

    def __init__(self) -> None:
        self._cases: list[dict[str, object]] = []
        self._data: dict[str, str] = {}

    def add(self, case: ViewerCase) -> None:
        """Add a case; only what gets into the page is kept in memory.

        Raises:
            ValueError: a surface cannot be read.
            RuntimeError: a package is missing that reads surfaces.
        """
        self._cases.append(_described(case, f"viewer-{len(self._cases)}", self._data))

    def html(self) -> str:
        """The part of the page, empty without cases."""
        if not self._cases:
            return ""
        environment = Environment(loader=PackageLoader("rehrseg_nnunet.report"), autoescape=True, trim_blocks=True)
        return environment.get_template("viewer.html").render(
            cases=self._cases,
            data=self._data,
            style=_data("viewer.css"),
            script=_data("viewer.js"),
            niivue=_niivue(),
            licences=_data("niivue-licences.txt"),
        )


def _data(name: str) -> str:
    return (files("rehrseg_nnunet.report") / "data" / name).read_text(encoding="utf-8")


@cache
def _niivue() -> str:
    return _base64(gzip.compress(_data(NIIVUE_FILE).encode(), mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _described(case: ViewerCase, name: str, data: dict[str, str]) -> dict[str, object]:
    """What the script must know of a case; its files are added to `data`."""
    points = np.concatenate(
        [np.empty((0, 3)), *(box_corners_mm(layer.image) for layer in case.layers if layer.kind == "labels")]
    )
    items = _fitted(_items(case, points))
    volumes = [item.part for item in items if isinstance(item.part, SmallVolume)]
    finest = min(volumes, key=lambda volume: float(np.prod(volume.spacing_mm)))
    data[f"{name}-grid"] = _base64(blank(finest).encoded())
    data.update({f"{name}-{index}": _base64(item.part.encoded()) for index, item in enumerate(items)})
    entries = [item.described(f"{name}-{index}") for index, item in enumerate(items)]
    coarse = [item.title for item in items if item.part.halvings]
    return {
        "name": case.name,
        "grid": f"{name}-grid",
        "volumes": entries[: len(volumes)],
        "surfaces": entries[len(volumes) :],
        "centre": _centre_mm(points, volumes[0]),
        "note": f"Coarser than the files, to keep this page small: {', '.join(coarse)}." if coarse else "",
    }


@dataclass(frozen=True, eq=False)
class _Item:
    """One line of the list of layers."""

    title: str
    part: Part
    colours: Sequence[Colour] = ()
    names: Sequence[str] = ()  # one for each colour

    def described(self, key: str) -> dict[str, object]:
        volume = self.part if isinstance(self.part, SmallVolume) else None
        return {
            "title": self.title,
            "kind": volume.kind if volume else "surface",
            "data": key,
            "window": volume.window if volume else (),
            "colours": self.colours,
            "names": self.names,
        }


def _items(case: ViewerCase, points: np.ndarray) -> list[_Item]:
    scans = [] if case.scan is None else [_Item("Scan", cropped(case.scan, "scan", points, margin_mm=MARGIN_MM))]
    layers = [_layer_item(layer, points) for layer in case.layers]
    surfaces = [_surface_item(file, case.name, index) for index, file in enumerate(case.surfaces)]
    return [*scans, *layers, *surfaces]


def _layer_item(layer: ViewerLayer, points: np.ndarray) -> _Item:
    volume = cropped(layer.image, layer.kind, points, margin_mm=MARGIN_MM)
    if layer.kind == "uncertainty":
        return _Item(layer.title, volume)
    values = [int(value) for value in np.unique(volume.array) if value > 0][:_MOST_LABELS]
    colours = [layer.colours.get(value, colour(value - 1)) for value in values]
    return _Item(layer.title, renumbered(volume, values), colours, [layer.names.get(value, "") for value in values])


def _surface_item(file: Path, case: str, index: int) -> _Item:
    surface, own = read_surface(file)
    mesh = SmallMesh(surface.vertices @ LPS_RAS[:3, :3], surface.faces)
    title = f"Surface {file.stem.removeprefix(case).lstrip('_')}".strip()
    return _Item(title, mesh, [own or colour(index)], [""])


def _fitted(items: Sequence[_Item]) -> list[_Item]:
    """The items, the largest made coarser until all together fit, or none can be."""
    fitted = [replace(item, part=_of_few_voxels(item.part)) for item in items]
    sizes = [_size(item.part) for item in fitted]
    while sum(sizes) > _BYTES_A_CASE:
        for index in np.argsort(sizes)[::-1]:
            smaller = fitted[index].part.coarser()
            if smaller is not None:
                fitted[index], sizes[index] = replace(fitted[index], part=smaller), _size(smaller)
                break
        else:
            break
    return fitted


def _of_few_voxels(part: Part) -> Part:
    while isinstance(part, SmallVolume) and part.array.size > _MOST_VOXELS:
        part = part.coarser() or part
    return part


def _size(part: Part) -> int:
    return len(_base64(part.encoded()))


def _centre_mm(points: np.ndarray, volume: SmallVolume) -> list[float]:
    if len(points):
        return ((points.min(axis=0) + points.max(axis=0)) / 2).tolist()
    middle = (np.array(volume.array.shape) - 1) / 2
    return apply_affine(volume.affine, middle).tolist()
