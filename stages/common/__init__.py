"""Code shared by the stages: settings, command line, paths and the image table."""
