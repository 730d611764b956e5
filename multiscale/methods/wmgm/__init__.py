"""WMGM: a score model for the coarse wavelet band, one forward pass a level for the details (arXiv 2411.09356)."""
