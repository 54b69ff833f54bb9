"""Quality on real MRI with known truth: `python -m benchmarks.quality`, see `__main__`."""
