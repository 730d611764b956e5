"""The pipeline run as flows: in parallel, on a schedule, and in searches."""
