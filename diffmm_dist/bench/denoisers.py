"""Denoisers and schedules for the cases that time them, with published settings."""

import torch

from diffmm_dist.bench.problems import STREAM
from diffmm_dist.diffusion.denoiser import Denoiser
from diffmm_dist.diffusion.schedule import DiffusionSchedule
from diffmm_dist.models.common.diffusion_settings import Diffusion
from diffmm_dist.parallel.columns import Columns
from diffmm_dist.parallel.ranges import Ownership
from diffmm_dist.parallel.world import World

PUBLISHED = Diffusion()


def new_denoiser(num_items: int, width: int, device: torch.device) -> Denoiser:
    """Return a denoiser with one hidden layer and published settings."""
    columns = Columns(World.single(device), Ownership((0, num_items)), torch.arange(num_items, device=device))
    denoiser = Denoiser(columns, [width], time_embedding_dim=PUBLISHED.time_embedding_dim).to(device)
    denoiser.initialize(STREAM.child("denoiser"))
    return denoiser


def new_schedule(num_timesteps: int = PUBLISHED.num_timesteps) -> DiffusionSchedule:
    """Return the published schedule, over another number of steps if wanted."""
    return DiffusionSchedule(
        num_timesteps,
        noise_scale=PUBLISHED.noise_scale,
        noise_min=PUBLISHED.noise_min,
        noise_max=PUBLISHED.noise_max,
    )
