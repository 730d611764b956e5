"""Networks, one family a module."""
