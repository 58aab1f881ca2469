"""Intervals and verdicts over seeds, and over images."""
