"""The smallest method: docs/adding-a-method.md goes through it."""
