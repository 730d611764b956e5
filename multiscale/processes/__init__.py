"""From noise to data and back: rectified flow and diffusion, apart from any network."""
