"""Fair aggregation, sampling and stability on skewed populations."""
