"""Losses: self-SR (stage 1), uncertainty-weighted and HR segmentation, distillation (stage 2)."""
