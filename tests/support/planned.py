"""A small dataset under its plans, without files."""

from types import SimpleNamespace

from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset


def plan(label_manager, *, factor, spacing_mm=(3.0, 1.0, 1.0), patch_size=(4, 8, 8), raw_folder=None):
    """What nnU-Net's managers say of it; the patch is on the thick-slice grid."""
    return PlannedDataset(
        plans_manager=SimpleNamespace(get_label_manager=lambda _: label_manager),
        configuration_manager=SimpleNamespace(spacing=list(spacing_mm), patch_size=list(patch_size)),
        dataset_json={"file_ending": ".nrrd"},
        factor=factor,
        raw_folder=raw_folder,
    )
