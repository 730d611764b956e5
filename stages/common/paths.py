"""The paths of the stages' inputs and outputs, as in dvc.yaml."""

import re
from pathlib import Path

EXPERIMENT = Path("params.yaml")
RECIPES = Path("params/recipes")
CLAIMS = Path("params/claims.yaml")
SCRATCH = Path(".scratch")  # checkpoints, downloads and caches: untracked, safe to delete when nothing runs

PREVIEWS = SCRATCH / "previews"  # /PART/latest.png, /PART/010.png to /PART/100.png: samples at each tenth of a training

CODE = Path("data/code")  # /STAGE or /STAGE-KIND: the code that decides a stage
IMAGES = Path("data/images.parquet")  # what is known of each image
PIXELS = Path("data/pixels")  # /SPLIT: the images themselves, in shards
TRAIN, VALIDATION = PIXELS / "train", PIXELS / "validation"
LATENTS = Path("data/latents")  # /RESOLUTION
DECOMPOSED = Path("data/decomposed")  # /NAME
HELD_OUT = "validation.safetensors"  # the same of the validation split, if there is one, beside that of the training
CAPTIONS = Path("data/captions")  # /NAME
PROMPTS = "prompts.parquet"
EMBEDDINGS = LATENTS / "text"  # /NAME: beside the latents of the images, so that decompositions depend on both
REFERENCE = Path("data/reference")
VAE = Path("models/vae")
CLASSIFIER = Path("models/classifier")
TEXT = Path("models/text")  # /NAME
MODELS = Path("models")  # /METHOD/PART
SAMPLES = Path("samples")  # /METHOD, /FLOOR
MEASUREMENTS = Path("reports/measurements")  # /METHOD.json, /FLOOR.json
METRICS = Path("reports/metrics")  # /METHOD.json, /FLOOR.json: the headline of a measurement; /classifier.json
STEPS = "steps.json"  # of a folder in SAMPLES: what other numbers of solver steps cost
PAIRED = Path("reports/paired")  # /METHOD.parquet: what each image adds to the metrics
COSTS = Path("reports/costs.json")  # of each method: network calls, floating-point operations, parameters
NEIGHBOURS = Path("reports/neighbours")  # /METHOD.png, /FLOOR.png
TIMINGS = Path("reports/timing")  # /PART.json, /sample-METHOD.json, /sampling.json, /claims.json; see `timings`
REPORTS = Path("reports")

# What the stages make, as patterns of `Path.match`, and the address of the stage that makes it.
MAKERS = {
    f"{IMAGES}": "download",
    f"{PIXELS}": "download",
    f"{VAE}": "vae",
    f"{CLASSIFIER}": "classifier",
    f"{METRICS}/classifier.json": "classifier",
    f"{REFERENCE}": "reference",
    f"{COSTS}": "timing",
    f"{TIMINGS}/claims.json": "report",
    f"{LATENTS}/[0-9]*": "latents@NAME",
    f"{EMBEDDINGS}/*": "embeddings@NAME",
    f"{TEXT}/*": "encoder@NAME",
    f"{CAPTIONS}/*": "captions@NAME",
    f"{DECOMPOSED}/*": "decompose@NAME or synthetic@NAME",
    f"{MODELS}/*/*": "train@NAME or distill@NAME",
    f"{SAMPLES}/*": "sample@NAME or floor@NAME",
    f"{MEASUREMENTS}/*": "evaluate@NAME or floor@NAME",
    f"{NEIGHBOURS}/*": "evaluate@NAME or floor@NAME",
    f"{PAIRED}/*": "evaluate@NAME",
}

# The stages that go on from what they keep in the scratch folder.
RESUMING = ("download", "vae", "encoder", "latents", "synthetic", "train", "distill", "classifier")


def places_of(stage: str) -> list[Path]:
    """A path, of nothing, in each folder where a stage writes."""
    patterns = [pattern for pattern, made in MAKERS.items() if stage in re.split("@NAME| or ", made)]
    patterns += [f"{SCRATCH}/*"] if stage in RESUMING else []
    return [Path(f"{pattern.partition('*')[0]}.tmp") for pattern in patterns]


def made_by(path: Path) -> tuple[Path, str] | None:
    """The output that a file or folder belongs to, and the stage that makes it; None for what no stage makes."""
    for outer in [*reversed(path.parents), path]:
        for pattern, stage in MAKERS.items():
            if outer.match(pattern):
                return outer, stage.replace("NAME", outer.stem)
    return None


def parts_of(method: str) -> list[Path]:
    """The folders of a method's trained parts."""
    return sorted(path for path in (MODELS / method).glob("[!.]*") if path.is_dir())


def histories(method: str) -> list[Path]:
    """The histories of a method's parts that were trained, not fetched."""
    return [path for part in parts_of(method) if (path := part / "history.jsonl").exists()]
