"""SUPERB: evaluate any encoder on ten tasks."""
