"""Carrying out a run: its folder, lock and records, signals, several processes, progress."""
