"""Any 3D model on any grid: predictions against the truth on 1 mm, beside what stock nnU-Net gives."""
