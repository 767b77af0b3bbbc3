"""The rows of the ablation that all others are compared with, by name."""

CONTROL = "control"  # no teacher, in the steps of START
FAIR = "control_plateau"  # no teacher, with a learning rate of its own, until validation is flat
START = "start"  # the teacher's features to start from, until validation is flat
