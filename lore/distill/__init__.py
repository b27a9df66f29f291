"""Stage distill: labels of a judge become a student."""
