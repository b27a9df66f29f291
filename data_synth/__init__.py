"""Stage: synthetic data. Installed as lore.data_synth."""
