"""What two sides of a hop must agree on: tensors, models, messages, the checkpoint contract, errors."""
