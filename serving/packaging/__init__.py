"""How the bento is built from exactly one registry version."""
