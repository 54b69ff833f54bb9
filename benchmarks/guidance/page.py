"""The head of a page of docs/results, which a person goes on to write."""

from __future__ import annotations

import shlex

from benchmarks.guidance.benchmark import GuidanceBenchmark

COLUMNS = "table, row, cases, n, folds, resolution, metric, value ([meaning](README.md#csv-columns))"


def new_page(benchmark: GuidanceBenchmark, stem: str) -> str:
    """A page without tables.

    Args:
        benchmark: what it is of.
        stem: of the page's file.
    """
    facts = {
        "data": f"{benchmark.source.name}: the scans, and low-field twins of {benchmark.resolution:g} mm, SNR "
        f"{benchmark.snr:g}, contrast {benchmark.contrast:g}, bias 0.2",
        "split": f"by name: the first {benchmark.pairs} cases are pairs (fold 0), the next {benchmark.cases} have "
        f"labels (fold 0), the next {benchmark.test_cases} are test cases, which no training saw",
        "training": f"preset `{benchmark.preset}`, batch {benchmark.batch_size}, epochs of 250 steps, "
        f"{benchmark.precision}",
        "machine": "2 CPU cores",
        "command": f"`{shlex.join(command(benchmark))}`",
        "recorded in": "",
        "numbers": f"[csv]({stem}.csv); columns: {COLUMNS}",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in facts.items())
    title = benchmark.source.name.split("_", 1)[1]
    return (
        f"# Guidance on {title}\n\nQuestion: how much of a better scan does a keeper show, and what does a "
        f"segmentation gain by it?\n\n| | |\n|---|---|\n{table}\n"
    )


def command(benchmark: GuidanceBenchmark) -> list[str]:
    """The command, its work folder under a name of no machine."""
    options = {
        "--source": f"nnUNet_raw/{benchmark.source.name}",
        "--work": "/scratch/guidance",
        "--number": str(benchmark.number),
        "--jobs": "2",
        "--precision": benchmark.precision,
    }
    return ["python", "-m", "benchmarks.guidance", *(word for pair in options.items() for word in pair)]
