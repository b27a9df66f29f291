"""What every trainer shares, whatever it trains: arguments, loop, checkpoints, LoRA, batch order."""
