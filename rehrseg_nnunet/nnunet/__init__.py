"""The plugin kit: what trainers of both methods need of nnU-Net's runs, files and loops."""
