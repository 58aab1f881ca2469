"""Other ways to search, each written as its own documentation does and run as a process."""
