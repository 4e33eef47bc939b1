"""Torch modules: forward passes; no loss, no loop, no random draw of their own."""
