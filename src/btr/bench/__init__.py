"""Speed, measured fairly."""
