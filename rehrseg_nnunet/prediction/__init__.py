"""Prediction on thin slices with trained networks."""
