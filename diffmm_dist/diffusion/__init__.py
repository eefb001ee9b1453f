"""Gaussian diffusion over rows of a 0/1 matrix: schedule, denoiser, training losses and reverse chain."""
