"""Evaluation of judges: metrics, probes, comparisons and reports. Installed as lore.eval."""
