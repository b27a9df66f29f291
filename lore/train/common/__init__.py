"""Shared by all trainers: training arguments, training loop, checkpoints, LoRA, batch order."""
