"""Sentences and labels: where they come from, what their labels are called, and how they are batched."""
