"""Evaluation of samples: features, metrics, memorisation, a classifier."""
