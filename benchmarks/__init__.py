"""Benchmarks of the runtime, side by side with nnU-Net's predictor and MONAI's: ``make bench``."""
