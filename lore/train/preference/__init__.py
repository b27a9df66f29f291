"""DPO and KTO."""
