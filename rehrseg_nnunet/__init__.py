"""REHRSeg for nnU-Net v2: high-resolution segmentation from thick-slice MRI, without high-resolution training data."""
