"""The science of multi-scale image generation: methods, networks, samplers. Needs torch; runs alone on a GPU box."""
