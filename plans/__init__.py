"""Presets for `rehrseg plan`: one JSON file each."""
