"""Applying trained networks: super-resolution of cases, the distillation teacher, HR prediction."""
