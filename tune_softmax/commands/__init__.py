"""The commands of the command line, a module for each topic; `cli.py` registers them."""
