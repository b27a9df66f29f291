"""The rubric as data: tiers, dimensions, rules, demands and the cost of a wrong verdict."""
