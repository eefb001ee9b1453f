"""DiffKG."""
