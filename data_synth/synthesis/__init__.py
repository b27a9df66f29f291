"""Stage synthesize: a teacher writes reasoning for rated pairs, and checks verify it."""
