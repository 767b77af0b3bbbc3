"""What is asked of training and evaluation together, beside the pipeline."""
