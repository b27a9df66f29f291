"""CSV, JSON lines and Parquet from strangers, streamed row by row: `any_table.table_records` reads each of them by its suffix."""
