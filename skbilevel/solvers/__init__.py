"""The algorithms: loops that see callables and numbers."""
