"""REHRSeg's stage 2, segmentation with an HR head (paper sections 3.3 to 3.6, Eq. 7 to 11)."""
