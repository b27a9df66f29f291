"""Pairs: the row type, Parquet in and out, validation, rejected rows, images, splits and statistics."""
