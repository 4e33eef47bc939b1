"""What users call: validate, split, build, solve, store."""
