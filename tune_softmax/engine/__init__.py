"""Train one trial (`reference`), or many as one pack (`pack`); torch or NumPy alone, no Ray."""
