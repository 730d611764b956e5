"""SwD: a teacher distilled into a few steps at growing sides (scale-wise distillation, arXiv 2503.16397)."""
