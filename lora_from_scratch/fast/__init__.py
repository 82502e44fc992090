"""What makes it fast: each file is the twin of something plain, and a test holds the two together."""
