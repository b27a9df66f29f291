"""The embedded shop: items, queries, photos, search log, rule book, and a program teacher with access to the truth."""
