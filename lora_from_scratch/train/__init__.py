"""What stands around the loop of `core/`: optimizer, precision, device, measuring, evaluating."""
