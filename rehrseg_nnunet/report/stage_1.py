"""What a finished stage 1 left: scores beside plain interpolation, pictures of validation cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rehrseg_nnunet.report.training_log import read_logs

REPORT = "self_sr_report.json"
_DIGITS = {"psnr": 2}
_TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "dice": "Dice", "spearman": "Spearman", "auroc": "AUROC"}
_PLAIN = "B-spline"
_PICTURE = "pseudo_hr_"
_DISAGREES = "its pseudo-HR labels"


@dataclass(frozen=True)
class Stage1:
    """Of one fold.

    Attributes:
        rows: one for each comparison and method, cells by column.
        uncertainty_rows: the same for maps of uncertainty.
        pictures: PNG file by case.
        disagreeing: what the log says of cases whose pseudo-HR labels do not agree with their own.
    """

    rows: Sequence[Mapping[str, str]]
    uncertainty_rows: Sequence[Mapping[str, str]]
    pictures: Mapping[str, Path]
    disagreeing: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path) -> Stage1 | None:
        """Of a fold's folder, None where there is none.

        Raises:
            ValueError: the report is damaged.
        """
        file = folder / REPORT
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            rows = _rows(content, ("psnr", "ssim", "dice", "spearman"))
            unsure = content.get("uncertainty", {"comparisons": {}, "cases": {}})
            uncertainty_rows = _rows(unsure, ("spearman", "auroc"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} must be stage 1's report, got {error}; write it again with --val") from None
        pictures = {f.stem.removeprefix(_PICTURE): f for f in sorted(folder.glob(f"{_PICTURE}*.png"))}
        disagreeing = [warning for warning in read_logs(folder).warnings if _DISAGREES in warning]
        return cls(rows, uncertainty_rows, pictures, disagreeing)

    @property
    def answer(self) -> str:
        """PSNR and Dice beside the better interpolation, on the truth if it is known, else as simulated; or empty."""
        known = [row["compared with"] for row in self.rows] or [""]
        rows = [row for row in self.rows if row["compared with"] == known[-1]]
        own = [row for row in rows if not row["method"].startswith(_PLAIN)]
        plain = [row for row in rows if row["method"].startswith(_PLAIN)]
        if not own or not plain:
            return ""
        best = {score: max(float(row[score]) for row in plain) for score in (_TITLES["psnr"], _TITLES["dice"])}
        parts = [f"{score} {own[0][score]}, interpolated {value:g}" for score, value in best.items()]
        return f"{known[-1]}: {'; '.join(parts)}."


def _rows(content: Mapping, columns: Sequence[str]) -> list[dict[str, str]]:
    return [
        {
            "compared with": f"{comparison} ({content['cases'][comparison]})",
            "method": method,
            **{_TITLES[c]: f"{scores[c]:.{_DIGITS.get(c, 3)}f}" if c in scores else "" for c in columns},
        }
        for comparison, methods in content["comparisons"].items()
        for method, scores in methods.items()
    ]
