"""The basis of all other code: devices, randomness, settings, storage, pixels and resizing."""
