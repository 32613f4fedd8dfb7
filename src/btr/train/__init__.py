"""The three training steps."""
