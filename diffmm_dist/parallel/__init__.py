"""Workers: who they are (world), what they own (ranges), how they talk (collectives), how they draw (random)."""
