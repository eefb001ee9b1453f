"""What DiffMM costs: memory, work and traffic of its phases."""
