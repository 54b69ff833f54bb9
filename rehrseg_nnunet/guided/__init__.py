"""Guidance by images that only training has (arXiv 2402.08409): teacher, keeper, their data and losses."""
