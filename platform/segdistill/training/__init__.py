"""One training loop for teacher, student and control; distillation; Ray Train around it."""
