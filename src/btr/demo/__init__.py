"""The demonstration: a bundled corpus, ten questions, and the comparison that they tell."""
