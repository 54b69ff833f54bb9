"""What a short run on one GPU can answer: `python -m benchmarks.gpu`, see `__main__`."""
