"""The HTTP service: one scan in, a label map on the same grid out."""
