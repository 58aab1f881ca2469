"""What a user asks for: search, resume, train, confirm, remedies, predict."""
