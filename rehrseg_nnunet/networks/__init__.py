"""Networks: FLAVR and the self-SR network built on it, the HR segmentation head."""
