"""The pipeline: one module, one verb, one DVC stage. Each runs alone: `python -m stages.NAME --help`."""
