"""How an image is split into scales, one module a method, as plain tensor operations."""
