"""What a model does with a batch."""
