"""A place, a question about it, and the rules of local life that need no judge."""
