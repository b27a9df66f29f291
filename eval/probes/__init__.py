"""Each capability by itself: knowledge, photo, rules, and rules that were changed."""
