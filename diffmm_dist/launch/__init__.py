"""How a run is launched: in this process, through Ray, as a job of a cluster; and signals."""
