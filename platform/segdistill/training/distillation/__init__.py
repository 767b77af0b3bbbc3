"""What a student takes from its teacher: where it starts, and what it hears while it learns."""
