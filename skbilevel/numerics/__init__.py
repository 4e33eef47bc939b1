"""The shared numerical core: knows torch and NumPy, imports nothing else of the package."""
