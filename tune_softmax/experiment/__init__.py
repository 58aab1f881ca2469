"""The experiment file and what it means: read strictly, checked as a whole."""
