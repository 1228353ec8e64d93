"""Public weight layouts become a checkpoint folder."""
