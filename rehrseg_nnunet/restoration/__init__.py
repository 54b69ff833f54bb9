"""Training of networks that restore thin slices, image and labels, and export of cases with them."""
