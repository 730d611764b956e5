"""MSF: multi-scale latent factorisation (arXiv 2501.13349). One rectified-flow DiT for each scale of the latents."""
