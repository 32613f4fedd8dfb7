"""The command line: each command opens the library, calls it once, and prints."""
