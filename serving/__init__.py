"""What runs in the hospital: the service, how it is packaged, and the contract between the two."""
