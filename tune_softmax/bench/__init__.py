"""Measurements of speed, one module a question: `packed`, `search`, `overhead`, `scaling`."""
