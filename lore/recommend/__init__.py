"""Q-BERT4Rec (arXiv 2512.02474): items and histories become semantic ids, and these the next items."""
