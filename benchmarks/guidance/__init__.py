"""Guidance on pairs with known truth, `python -m benchmarks.guidance`."""
