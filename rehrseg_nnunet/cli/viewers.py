"""Label images with names and colours for 3D Slicer and ITK-SNAP."""

from __future__ import annotations

import argparse
from pathlib import Path

from rehrseg_nnunet.nnunet.folders import check_folder_name, check_input
from rehrseg_nnunet.nnunet.staging_folders import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg viewers`."""
    parser.description = (
        "For every label image a CASE.seg.nrrd, which 3D Slicer opens as a segmentation with names and colours, and "
        "for the folder an itksnap_labels.txt, which ITK-SNAP reads as label descriptions. "
        "`rehrseg predict --seg_nrrd` writes them with the prediction. Needs the extra [slicer]."
    )
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER|FILE", help="label images, or one of them")
    add("-o", metavar="FOLDER", help="where to write; made if it does not exist (default: beside the label images)")
    add("-djfile", metavar="FILE", help="dataset.json with the labels' names (default: the one beside the images)")


def run(args: argparse.Namespace) -> None:
    """Write the files for every label image.

    Raises:
        RuntimeError: the extra is not installed.
        FileNotFoundError: nothing to read.
        ValueError: a file that cannot be used; named.
        OSError: a file could not be written; named.
    """
    source = Path(args.i)
    check_input(source)
    if args.o:
        check_folder_name(Path(args.o), (".nii", ".gz", ".nrrd", ".txt"))
    from rehrseg_nnunet.surfaces.stored import find_cases, find_dataset_json, read_labels
    from rehrseg_nnunet.surfaces.structures import structures_of
    from rehrseg_nnunet.surfaces.viewers import ITK_SNAP_FILE, require_slicer, write_itk_snap_labels, write_segmentation

    require_slicer()
    dataset_json = find_dataset_json(source, None if args.djfile is None else Path(args.djfile))
    cases = find_cases(source, dataset_json, labels_only=True)
    output = Path(args.o) if args.o else cases[0].file.parent
    with output_folder(output, purpose="segmentations are written there; choose another folder with -o"):
        for case in cases:
            labels, grid, structures = read_labels(case, dataset_json)
            print(f"wrote {write_segmentation(labels, grid, structures, output / case.name)}")
        if dataset_json is None:
            print(f"no {ITK_SNAP_FILE}: the labels have no names without the model's dataset.json; give it as -djfile")
        else:
            print(f"wrote {write_itk_snap_labels(structures_of(dataset_json), output)}")
