"""The report of a run: figures of its dataframes, and one page that shows them."""
