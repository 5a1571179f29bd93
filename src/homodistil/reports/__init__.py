"""Run folders and records in, text and pictures out. No torch."""
