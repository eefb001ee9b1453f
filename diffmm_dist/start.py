"""Where the program starts: signals are heard before anything large is imported."""

from diffmm_dist import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.hear()
    from diffmm_dist.launch.own_job import stopped_where_final

    with stopped_where_final():
        from diffmm_dist.cli import main as run

        run()
