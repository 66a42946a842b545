"""Runs together: their table, their summary, and the page with its figures."""
