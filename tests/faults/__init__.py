"""The fault suite: what is promised of a search, held against faults that come from outside."""
