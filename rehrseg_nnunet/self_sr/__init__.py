"""REHRSeg's stage 1, self-supervised super-resolution (paper sections 3.2 to 3.4, Eq. 1 to 6)."""
