"""Models: building from records, heads, weights on disk."""
