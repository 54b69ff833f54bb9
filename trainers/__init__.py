"""nnU-Net trainers of REHRSeg; nnUNet_extTrainer names this folder."""
