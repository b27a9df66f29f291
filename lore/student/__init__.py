"""A student: a small encoder that answers like a judge, in milliseconds."""
