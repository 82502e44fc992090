"""What was learned: numbers of what an adapter adds to its base. It knows nothing of training."""
