"""How samples are measured: features, metrics, copies of training images, a classifier."""
