"""What a student takes from its teacher: its first weights, and the terms of its loss."""
