"""A small base model from scratch."""
