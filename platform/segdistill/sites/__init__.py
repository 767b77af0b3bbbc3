"""Real data: sites and their manifests, imports, checks, splits, and preparing them for training."""
