"""How good SMORE is: PSNR, SSIM and label Dice against true HR volumes, beside plain interpolation."""

from __future__ import annotations

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.report import (
    Comparison,
    RestorationReport,
    load_volumes,
    method_scores,
    true_hr_case,
)
from rehrseg_nnunet.smore.export import smore_case
from rehrseg_nnunet.smore.network import WDSR

METHOD, TRUE_HR = "SMORE", "true HR"


def report_smore(network: WDSR, dataset: Cases, planned: PlannedDataset) -> RestorationReport:
    """Score the validation cases whose true HR volumes lie beside the raw data; without any the report is empty.

    Args:
        network: trained.
        dataset: preprocessed LR validation cases.
        planned: the dataset under its plans.
    """
    rows = []
    for identifier in sorted(dataset.identifiers):
        lr = load_volumes(dataset, identifier)
        truth = true_hr_case(planned, identifier, lr[0], dataset.load_case(identifier)[3])
        if truth is not None:
            restored = {METHOD: smore_case(network, *lr, planned.label_manager)}
            comparison = Comparison(TRUE_HR, lr, truth, planned.spacing_mm)
            rows.append(method_scores(comparison, restored, planned.label_manager))
    return RestorationReport.of_cases({TRUE_HR: rows} if rows else {})
