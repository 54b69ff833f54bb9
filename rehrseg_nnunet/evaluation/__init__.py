"""Measure segmentations and images against a reference: metrics on arrays, comparison of files, tables."""
