"""What a run shows and writes while it goes: recorders, progress, log, timing."""
