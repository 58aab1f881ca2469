"""Ray through its documented API; what is undocumented is in `fast_start` alone."""
