"""Examples in, checked and split: IDX files, the public datasets, the built-in digits."""
