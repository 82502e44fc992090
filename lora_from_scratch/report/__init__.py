"""What people look at. It reads records (see `runs/record.py`) and knows nothing of training."""
