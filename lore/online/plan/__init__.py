"""What the service would cost, and how good it would be, before it is built: `lore plan`."""
