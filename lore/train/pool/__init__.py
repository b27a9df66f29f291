"""A judge's own answers to labeled pairs, and the curriculum chosen from them."""
