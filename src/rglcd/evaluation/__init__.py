"""Sampling, scoring and comparing the students, and the report of it."""
