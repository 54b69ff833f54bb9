"""Derived cases on disk: how they are written, checked and found again."""
