"""DiffMM: multi-modal graph diffusion."""
