"""Every use of undocumented Ray: a faster start of a local search, behind one switch."""
