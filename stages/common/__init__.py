"""What the stages share: settings, command line, paths and the image table."""
