"""The plans' blocks of settings, and presets of them."""
