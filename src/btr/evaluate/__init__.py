"""Scores and the run that gives them."""
