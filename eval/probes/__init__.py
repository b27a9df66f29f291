"""Extra tests of a judge: each capability by itself, changed rules, perturbed inputs, sampled answers."""
