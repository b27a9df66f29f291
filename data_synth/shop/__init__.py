"""The embedded shop: items, queries, photos, search log, rule book and the program teacher that knows the truth."""
