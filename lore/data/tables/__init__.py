"""CSV, JSON lines and Parquet from strangers, streamed row by row."""
