"""A run elsewhere: copies in a store, an Optuna study for its dashboard."""
