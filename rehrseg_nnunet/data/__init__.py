"""Cases on disk, loaders and transforms of both stages."""
