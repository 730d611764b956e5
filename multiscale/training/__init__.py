"""The training loop, its checkpoints, and the parts that it trains."""
