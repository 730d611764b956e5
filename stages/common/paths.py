"""Where the stages put things. The same names stand in dvc.yaml."""

from pathlib import Path

EXPERIMENT = Path("params/experiment.yaml")
RECIPES = Path("params/recipes")
SCRATCH = Path(".scratch")  # checkpoints and downloads: never tracked, safe to delete when nothing runs

IMAGES = Path("data/images.parquet")
LATENTS = Path("data/latents")  # /SIDE
DECOMPOSED = Path("data/decomposed")  # /NAME
REFERENCE = Path("data/reference")
VAE = Path("models/vae")
CLASSIFIER = Path("models/classifier")
MODELS = Path("models")  # /METHOD/PART
SAMPLES = Path("samples")  # /METHOD, /FLOOR
METRICS = Path("reports/metrics")  # /METHOD.json, /FLOOR.json
NEIGHBOURS = Path("reports/neighbours")  # /METHOD.png, /FLOOR.png
TIMINGS = Path("reports/timing")  # /PART.json, /sample-METHOD.json: wall times, which no other stage's data depend on
REPORTS = Path("reports")
