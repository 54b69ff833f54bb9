"""Surfaces, to print or to plan with, of segmentations that exist."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehrseg_nnunet.nnunet.folders import check_folder_name, check_input
from rehrseg_nnunet.nnunet.staging_folders import output_folder
from rehrseg_nnunet.surfaces.formats import FORMATS

if TYPE_CHECKING:
    from rehrseg_nnunet.prediction.export import Writer
    from rehrseg_nnunet.surfaces.stored import StoredCase
    from rehrseg_nnunet.surfaces.write import SurfaceOptions, WrittenSurface


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg surfaces`."""
    parser.description = (
        "Closed surfaces in mm, one file for each case and label. Probabilities (the npz and pkl files of "
        "--save_probabilities) give smooth surfaces; label images give surfaces with their voxels' stairs. "
        "`rehrseg predict --surfaces` writes the same without keeping probabilities. Needs the extra [surfaces]."
    )
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER|FILE", help="npz files or label images, or one of them")
    add("-o", required=True, metavar="FOLDER", help="where to write; made if it does not exist")
    add("--format", nargs="+", default=("stl",), choices=FORMATS, help="file formats (default: stl)")
    add_space(parser)
    add(
        "-djfile",
        metavar="FILE",
        help="dataset.json with the labels' names (default: the one beside the files; label images do without)",
    )


def add_space(parser: argparse.ArgumentParser) -> None:
    """The option `--ras`, of every command that writes surfaces."""
    parser.add_argument(
        "--ras",
        action="store_true",
        help="surfaces in RAS coordinates (right, anterior, superior), not in LPS as DICOM and 3D Slicer have them",
    )


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """What `rehrseg predict` can write beside the segmentations."""
    parser.add_argument(
        "--surfaces",
        nargs="+",
        choices=FORMATS,
        metavar="FORMAT",
        help="also write the surface of every label, through the logits: stl, ply, obj, glb, 3mf, one or several "
        "(extra [surfaces])",
    )
    add_space(parser)
    parser.add_argument(
        "--seg_nrrd",
        action="store_true",
        help="also write CASE.seg.nrrd, a segmentation with names and colours for 3D Slicer (extra [slicer])",
    )


def check_prediction_options(args: argparse.Namespace) -> None:
    """Refuse, before anything is predicted, what is not installed or has no effect.

    Raises:
        RuntimeError: an extra is missing.
        ValueError: `--ras` without surfaces.
    """
    if args.surfaces:
        from rehrseg_nnunet.surfaces.formats import require_formats

        require_formats(args.surfaces)
    elif args.ras:
        raise ValueError("--ras is about surfaces; add --surfaces stl, or leave it out")
    if args.seg_nrrd:
        from rehrseg_nnunet.surfaces.viewers import require_slicer

        require_slicer()


def prediction_writers(args: argparse.Namespace) -> list[Writer]:
    """What writes the files of `add_prediction_options` for each case."""
    from rehrseg_nnunet.prediction.writers import SegmentationWriter, SurfaceWriter
    from rehrseg_nnunet.surfaces.write import SurfaceOptions

    writers: list[Writer] = []
    if args.surfaces:
        writers.append(SurfaceWriter(SurfaceOptions(tuple(dict.fromkeys(args.surfaces)), ras=args.ras)))
    if args.seg_nrrd:
        writers.append(SegmentationWriter())
    return writers


def run(args: argparse.Namespace) -> None:
    """Write the surfaces of every case.

    Raises:
        RuntimeError: the extra is not installed.
        FileNotFoundError: nothing to read, or a pkl file is missing.
        ValueError: a file that cannot be used; named.
        OSError: a file could not be written; named.
    """
    source, output = Path(args.i), Path(args.o)
    check_input(source)
    check_folder_name(output, FORMATS)
    from rehrseg_nnunet.surfaces.formats import require_formats
    from rehrseg_nnunet.surfaces.stored import find_cases, find_dataset_json
    from rehrseg_nnunet.surfaces.write import SurfaceOptions

    require_formats(args.format)
    dataset_json = find_dataset_json(source, None if args.djfile is None else Path(args.djfile))
    cases = find_cases(source, dataset_json)
    _say_labels([case.name for case in cases if not case.has_probabilities])
    _check_names(cases, dataset_json)
    options = SurfaceOptions(tuple(dict.fromkeys(args.format)), ras=args.ras)
    number = 0
    with output_folder(output, purpose="surfaces are written there; choose another folder with -o"):
        for case in cases:
            written = _write(case, dataset_json, output / case.name, options)
            number += sum(len(surface.files) for surface in written)
            for surface in written:
                if surface.files:
                    print(surface.described(case.name))
    print(f"wrote {number} files to {output}")


def _say_labels(names: Sequence[str]) -> None:
    import logging

    from rehrseg_nnunet.nnunet.raw_files import listed

    if names:
        logging.getLogger(__name__).warning(
            "%s: of labels only, so surfaces have their voxels' stairs; probabilities (--save_probabilities) give "
            "smooth ones",
            listed(names),
        )


def _check_names(cases: Sequence[StoredCase], dataset_json: Mapping[str, Any] | None) -> None:
    """Refuse surfaces of several cases that would share a file; without dataset.json, `_label_1` sets them apart."""
    from rehrseg_nnunet.surfaces.stored import stored_labels
    from rehrseg_nnunet.surfaces.structures import structures_of
    from rehrseg_nnunet.surfaces.write import check_names

    described = {case.name: dataset_json or (stored_labels(case) if case.has_probabilities else None) for case in cases}
    check_names({name: structures_of(labels) for name, labels in described.items() if labels is not None})


def _write(
    case: StoredCase, dataset_json: Mapping[str, Any] | None, stem: Path, options: SurfaceOptions
) -> list[WrittenSurface]:
    from rehrseg_nnunet.surfaces.stored import read_labels, read_logits, stored_labels
    from rehrseg_nnunet.surfaces.structures import structures_of
    from rehrseg_nnunet.surfaces.write import write_label_surfaces, write_surfaces

    if not case.has_probabilities:
        labels, grid, structures = read_labels(case, dataset_json)
        return write_label_surfaces(labels, grid, structures, stem, options)
    described = dataset_json or stored_labels(case)
    if described is None:
        raise FileNotFoundError(
            f"{case.file.with_name('dataset.json')} is missing: it says which label is which in {case.file.name}; give "
            "the model's with -djfile"
        )
    structures = structures_of(described)
    logits, grid = read_logits(case, structures)
    return write_surfaces(logits, grid, structures, stem, options)
