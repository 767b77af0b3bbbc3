"""The service that answers at the bedside: one scan in, a label map on the same grid out."""
