"""Many scans through one bundle: which there are, what is done, the table of volumes, the pictures."""
