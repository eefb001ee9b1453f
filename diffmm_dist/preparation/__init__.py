"""How datasets are made: imported, generated, partitioned."""
