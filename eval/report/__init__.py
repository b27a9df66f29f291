"""The evaluation report: console tables, files, and one HTML page."""
