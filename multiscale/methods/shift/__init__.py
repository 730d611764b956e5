"""A training-free resolution shift: a teacher of all resolutions, sampled small first and then larger."""
