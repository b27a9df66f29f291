"""Stage: evaluation. Installed as lore.eval."""
