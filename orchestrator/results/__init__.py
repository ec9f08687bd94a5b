"""What jobs gave: parquet, queries, the report, recommendations, exported students."""
