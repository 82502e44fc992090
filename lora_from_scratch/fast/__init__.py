"""What makes it fast. What computes here is the twin of something plain, and tests hold the two together."""
