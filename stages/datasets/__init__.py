"""Where images come from: formats and layouts that `download` reads, and references to measure against."""
