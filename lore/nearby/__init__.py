"""AskNearby (arXiv 2512.02502): which places within a walk answer a need, and which of them suit this person."""
