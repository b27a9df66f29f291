"""Readers for untrusted CSV, JSON lines and Parquet files, row by row. `any_table.table_records` chooses the reader by suffix."""
