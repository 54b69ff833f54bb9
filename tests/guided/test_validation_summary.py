"""What teacher and keeper leave where nnU-Net has a segmentation's scores."""

import json

import pytest
from nnunetv2.evaluation.evaluate_predictions import load_summary_json

from rehrseg_nnunet.guided.validation_summary import SUMMARY, write_summary

MEANS = {"synthesised": {"psnr": 21.5, "ssim": 0.75}}


@pytest.fixture
def summary(tmp_path):
    (tmp_path / "synthesis_report.json").write_text(json.dumps({"mean": MEANS, "cases": {"a": MEANS}}))
    write_summary(tmp_path / "synthesis_report.json")
    return tmp_path / SUMMARY


def test_it_has_the_means_and_says_where_the_rest_is(summary):
    assert json.loads(summary.read_text()) == {"image_scores": MEANS, "report": "synthesis_report.json"}
    write_summary(summary.parents[1] / "synthesis_report.json")  # --val
    assert [file.name for file in summary.parent.iterdir()] == ["summary.json"]


def test_nnunet_does_not_take_it_for_a_segmentations(summary):
    with pytest.raises(KeyError):
        load_summary_json(str(summary))
