"""TensorBoard events; the only place that imports tensorboard."""

from collections.abc import Mapping
from pathlib import Path

from diffmm_dist.monitoring.recorder import Recorder


class TensorBoardRecorder(Recorder):
    """Writes scalars as TensorBoard events, one step per epoch.

    Args:
        folder: where the event files go.
        start_epoch: first epoch that this process will record; TensorBoard drops what an earlier, killed process
            recorded from that epoch on.
    """

    def __init__(self, folder: Path, *, start_epoch: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder), purge_step=start_epoch if start_epoch else None)

    def scalars(self, values: Mapping[str, float], *, epoch: int) -> None:
        """Write one event per tag and flush, so that a running job can be watched."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, global_step=epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
