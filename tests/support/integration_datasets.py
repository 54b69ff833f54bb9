"""nnU-Net's integration datasets, made by its own scripts from a dataset with number 4 and Hippocampus' labels."""

import json
import runpy
import shutil
from pathlib import Path

from workspace import Workspace

SCRIPTS = {
    996: "Dataset996_IntegrationTest_Hippocampus_regions_ignore",
    997: "Dataset997_IntegrationTest_Hippocampus_regions",
    998: "Dataset998_IntegrationTest_Hippocampus_ignore",
    999: "Dataset999_IntegrationTest_Hippocampus",
}
SOURCE = 4  # the number that the scripts look for
LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}


def write_thick_hippocampus(nnunet: Workspace, source: Path | None, *, phantoms: int, cases: int = 10) -> None:
    """Dataset 4 with slices of four voxels, by `rehrseg simulate` from an isotropic dataset 104.

    Args:
        nnunet: where to write.
        source: isotropic nnU-Net raw dataset of which the first `cases` are taken; None writes phantoms instead.
        phantoms: how many.
        cases: how many.
    """
    if source is None:
        folder = nnunet.write_phantom(100 + SOURCE, cases=phantoms, name="Hippocampus")
    else:
        folder = _copy_cases(source, nnunet.raw / f"Dataset{100 + SOURCE}_Hippocampus", cases)
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset |= {"labels": LABELS, "numTraining": len(list((folder / "labelsTr").iterdir()))}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    nnunet.simulate(100 + SOURCE, SOURCE)


def _copy_cases(source: Path, target: Path, cases: int) -> Path:
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for label in sorted((source / "labelsTr").glob(f"*{ending}"))[:cases]:
        image = label.name.replace(ending, f"_0000{ending}")
        shutil.copy(label, target / "labelsTr")
        shutil.copy(source / "imagesTr" / image, target / "imagesTr")
    shutil.copy(source / "dataset.json", target)
    return target


def build(number: int) -> None:
    """Run nnU-Net's script of an integration dataset."""
    package = "nnunetv2.dataset_conversion.datasets_for_integration_tests"
    runpy.run_module(f"{package}.{SCRIPTS[number]}", run_name="__main__")
