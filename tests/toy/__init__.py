"""The smallest method; docs/adding-a-method.md explains it."""
