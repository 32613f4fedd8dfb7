"""Readers: one interface, a family a module."""
