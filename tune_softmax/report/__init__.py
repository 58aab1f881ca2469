"""The report of a run: figures over dataframes, and the one page that shows them."""
