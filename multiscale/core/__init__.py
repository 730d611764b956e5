"""What everything stands on: devices, randomness, storage, pixels and resizes."""
