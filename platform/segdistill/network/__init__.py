"""The teacher and the width-scaled students: one architecture, built, saved and exported."""
