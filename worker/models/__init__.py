"""Models: built from their records, their heads, their weights on disk."""
