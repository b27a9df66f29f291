"""What every stage that trains a judge shares: its session, rows, collator and image store."""
