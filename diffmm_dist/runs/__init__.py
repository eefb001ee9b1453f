"""What a run is: its configuration, identity, lock, checkpoints, progress and result; the files of a bundle."""
