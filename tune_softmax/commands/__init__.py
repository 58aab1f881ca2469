"""The commands of the command line, one module a topic; `cli.py` puts them together."""
