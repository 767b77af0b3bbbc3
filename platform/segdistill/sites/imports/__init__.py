"""Labelled scans of real sites, brought into the platform's own layout."""
