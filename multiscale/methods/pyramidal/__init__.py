"""Pyramidal flow matching (arXiv 2410.05954): one DiT, and a segment of its flow for each resolution."""
