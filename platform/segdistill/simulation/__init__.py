"""Simulated people and scanners, from real anatomies: the embedded cohort."""
