"""Measures over verdicts and labels: metrics, intervals, calibration, agreement. Nothing here reads a file or runs a judge."""
