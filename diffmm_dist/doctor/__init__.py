"""What `doctor` looks at: the packages, this machine, the cluster, places, and a configuration's needs.

Nothing large is imported before it is looked at, since any of it may be missing or broken.
"""
