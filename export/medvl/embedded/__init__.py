"""The small checkpoint and the phantoms that the project ships."""
