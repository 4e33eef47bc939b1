"""The equations: one file a distribution or paper; no loop, no random draw."""
