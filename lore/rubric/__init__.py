"""The rule book as data: tiers, dimensions, rules, demands and what a wrong verdict costs."""
