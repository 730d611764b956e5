"""SwD: a teacher distilled into a few steps at growing resolutions (scale-wise distillation, arXiv 2503.16397)."""
