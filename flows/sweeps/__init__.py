"""Searches of settings with Ray Tune."""
