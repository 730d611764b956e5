"""SSD: diffusion whose states shrink while they get noisier, with one Flexi-UNet (arXiv 2603.08709)."""
