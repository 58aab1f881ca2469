"""A run folder: its ledger, its results as dataframes, and the check of both."""
