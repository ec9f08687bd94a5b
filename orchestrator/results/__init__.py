"""Results of jobs: parquet, queries, the report, recommendations, exported students."""
