"""Beside the pipeline: the demo, and what brings the documents' tables and pictures in step."""
