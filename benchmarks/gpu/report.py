"""The page docs/results/gpu.md from a run's results: `python -m benchmarks.gpu.report OUT`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.budgets import EXPLANATION, kind_rows, part_rows, part_tasks
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.records import RESULTS, read_records
from rehrseg_nnunet.nnunet.safe_files import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs" / "results"
PAGE, DATA = DOCS / "gpu.md", DOCS / "gpu.jsonl"
HEAD = """# On a GPU

Question: does everything run on a GPU as on the CPU, what does it cost there, and how good does it become in minutes?

{state}

    python -m benchmarks.gpu.prepare --source RAW/Dataset004_Hippocampus --large RAW/Dataset120_BrainDeep \\
        --out .gpu/data
    python -m benchmarks.gpu --minutes 9 --data .gpu/data --out OUT       # on the GPU machine
    python -m benchmarks.gpu.report OUT                                   # writes this page

`--only 'step/*' train/rehrseg` runs some tasks again. `prepare --tiny`, then `--device cpu --minutes 3`, rehearse all.

The machine is Linux without network. {stubs} is imported but not used there, so a stub of that name will do. Whoever
adds a requirement of this package names it in one of these lists of `benchmarks/gpu/report.py`, which a test compares
with `setup.cfg`, and adds its wheel to what travels:

- on the machine: {present}
- wheels that travel with the code: {travelling}

The trainers with guidance have small data of their own, pairs and scans that are simulated from the first dataset:
`prepare --add-pairs` makes these alone anew. Keepers have an untrained teacher, and GuidedTrainer has an untrained
keeper. The teacher is compared with the CPU without its noise, which each device draws for itself.

How much memory the defaults take, by formula, is in [GPU memory](../reference/gpu-memory.md).
"""
# What the GPU machine has, what travels there, and what a stub stands for: every requirement of this package and, of
# other packages' requirements, what this run imports.
PRESENT = (
    "torch, numpy, scipy, matplotlib, pandas, scikit-image, scikit-learn, seaborn, requests, tifffile, tqdm, "
    "threadpoolctl, einops, msgpack, httpx, jinja2, timm"
)
TRAVELLING = (
    "nnunetv2, dynamic-network-architectures, batchgenerators, batchgeneratorsv2, acvl-utils, blosc2, "
    "connected-components-3d, nibabel, ndindex, numexpr, future, importlib-resources, monai, pydantic, "
    "pydantic-core, typing-inspection, annotated-types, fft-conv-pytorch, filelock, typing-extensions"
)
STUBS = "SimpleITK"
STEPS = "Steps beside the CPU in float32, from the same weights and batches"
NOT_RUN = "**Not run yet.** What a run will say is below; nothing here has been measured on a GPU."


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The page of a run's records; without any, what a run does."""
    head = HEAD.format(state=_state(records), present=PRESENT, travelling=TRAVELLING, stubs=STUBS)
    sections = [head, _parts(records)]
    if records:
        sections += [_correctness(records), _steps(records), _loaders(records), _cases(records), _quality(records)]
        sections.append(_failures(records))
    return "\n".join(section for section in sections if section)


def _state(records: Sequence[Mapping[str, Any]]) -> str:
    found = next((r for r in records if r.get("task") == "environment" and r["status"] == "result"), None)
    if found is None:
        return NOT_RUN if not records else "The environment was not recorded."
    keys = [key for key in found if key not in ("part", "task", "status") and found[key] is not None]
    return "Machine: " + ", ".join(f"{key} {found[key]}" for key in keys) + "."


def _parts(records: Sequence[Mapping[str, Any]]) -> str:
    """Budgets and what was taken of them."""
    taken = {r["part"]: r for r in records if r["status"] == "part"}
    ends = {r["task"]: r["status"] for r in records if "task" in r and r["status"] != "result"}
    rows = part_rows()
    for row, part in zip(rows if records else (), PARTS, strict=False):
        row["took, s"] = _number(taken.get(part.name, {}).get("seconds"), 0)
        row["went well"] = str(sum(ends.get(task.name) == "ok" for task in part_tasks(part)))
    return "\n".join((_table("Parts of nine minutes", rows), EXPLANATION, "", _table("Tasks, estimated", kind_rows())))


def _results(records: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [r for r in records if r["status"] == "result" and r.get("task", "").split("/")[0] == kind]


def _correctness(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "trainer": f"{r['trainer']}{', compiled' if r['compiled'] else ''}",
            "steps": f"{r['steps']} of {r['of']}",
            "largest difference of a loss": _number(r["worst_loss_difference"], 5),
            "least cosine of gradients": _number(r["worst_gradient_cosine"], 4),
            "overflows": str(r["overflows"]),
            "within tolerance": _yes(r["passed"]),
        }
        for r in _results(records, "steps")
    ]
    others = [
        {"check": r["task"], "of": _what(r), "passed": _yes(r["passed"])}
        for kind in ("finite", "resume", "ddp", "memory")
        for r in _results(records, kind)
    ]
    return f"{_table(STEPS, rows)}\n{_table('Other checks', others)}"


def _what(record: Mapping[str, Any]) -> str:
    if "phase" in record:
        return f"phase {record['phase']}, {record['steps']} of {record['of']} steps without nan"
    return str(record.get("fault") or record.get("backend") or "state after resumption")


def _steps(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "trainer": f"{r['trainer']}{', compiled' if r['compiled'] else ''}",
            "plans": r["plans"],
            "input": f"{r['batch_size']} x {' x '.join(map(str, r['input']))}",
            "parameters, M": _number(r["parameters"] / 1e6, 1),
            "steps/s": _number(r["steps_per_s"], 2),
            "peak GiB": _number(r["peak_gib"], 2),
        }
        for r in _results(records, "step")
    ]
    return _table("Training steps, loader excluded", rows)


def _loaders(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "trainer": r["trainer"],
            "data": r["data"],
            "workers": str(r["workers"]),
            "batches/s": _number(r["batches_per_s"], 1),
        }
        for r in _results(records, "loader")
    ]
    return _table("Loaders", rows)


def _cases(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "what": r["what"],
            "thick slices": " x ".join(map(str, r["shape"][1:])),
            "s a case": _number(r["seconds"], 3),
            "peak GiB": _number(r["peak_gib"], 2),
        }
        for r in _results(records, "case")
    ]
    return _table("One case", rows)


def _quality(records: Sequence[Mapping[str, Any]]) -> str:
    results = _results(records, "train")
    trainings = [
        {
            "training": r["name"],
            "trainer": r["trainer"],
            "data": r["data"],
            "epochs": str(r["epochs"]),
            "s": _number(r["train_seconds"], 0),
        }
        for r in results
        if "epochs" in r
    ]
    scores = [
        {
            "training": r["name"],
            "cases": r["set"],
            "resolution": r["resolution"],
            "to thin slices": r["way"],
            "Dice": _number(r["dice"], 3),
            "HD95, mm": _number(r["hd95_mm"], 2),
        }
        for r in results
        if "resolution" in r
    ]
    restored = [
        {"method": r["method"], **{key: _number(r.get(key), 3) for key in ("psnr", "ssim", "dice")}}
        for r in results
        if "method" in r
    ]
    return "\n".join(
        (
            _table("Trainings side by side", trainings),
            _table("Scores", scores),
            _table("Stage 1, validation cases", restored),
        )
    )


def _failures(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {"task": r["task"], "": r["status"], "why": _end(r.get("error") or r.get("reason") or "")}
        for r in records
        if "task" in r and r["status"] not in ("ok", "result")
    ]
    return _table("What did not run or did not finish", rows)


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [keys, ["---"] * len(keys), *([row[key].replace("|", "\\|") for key in keys] for row in rows)]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _yes(passed: bool) -> str:
    return "yes" if passed else "**no**"


def _shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without a traceback, which names the machine's folders."""
    return {**record, "error": _end(record["error"])} if "error" in record else dict(record)


def _end(text: str) -> str:
    """First sentence of the last line."""
    return text.strip().split("\n")[-1].split(". ")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Keep a run's results beside the page, and write the page."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.report", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="folder of a run; without it the page is written anew")
    args = parser.parse_args(argv)
    if args.out is not None:
        file = args.out / RESULTS
        if not (records := read_records(file)):
            sys.exit(f"error: OUT must be the folder of a run, but {file} has no results")
        write_atomically(DATA, "".join(f"{json.dumps(_shortened(record))}\n" for record in records))
    write_atomically(PAGE, page(read_records(DATA)))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
