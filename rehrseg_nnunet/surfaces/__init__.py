"""Surfaces of segmentations in mm, and files with names and colours for viewers."""
