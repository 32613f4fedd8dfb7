"""Sources to passages and questions: strict readers that lose nothing silently; no model code."""
