"""Models to and from nnU-Net v2, with the same function on either side."""
