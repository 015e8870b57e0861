"""The plots, drawn from numbers."""
