"""The card of an exported method: what it is, how to use it, its data, budget, metrics and licence.

What the experiment says stands in the files that the pipeline leaves beside models/: params.yaml (the data, and the
solvers of the measurement) and reports/measurements. What is not there is said to be unknown or not measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multiscale import methods
from multiscale.core import models
from multiscale.core.settings import Sampled, fault_of
from multiscale.core.storage import read_sealed_json
from multiscale.model import classes_of

METRICS = {
    "kid": "KID-{metric}",
    "fd": "FD-{metric}",
    "sfid": "sFD-{metric}",
    "fd_dinov2": "FD-DINOv2",
    "inception_score": "IS-{metric}",
    "precision": "precision",
    "recall": "recall",
    "label_accuracy": "label accuracy",
    "memorised": "memorised share",
}
CARD = """{front}# {name}

Images{size} by {kind}, trained with [Multiscale](#code): a pipeline of diffusers.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)
images = pipeline({classes}seeds=[0, 1]).images
```

Image k depends on seed k{and_class} alone. `pipeline.to("cuda")` works on a GPU. {about_classes}

## Code

The pipeline is the package `multiscale` in this folder, without the stages and flows of the project. Install it from
here and not from an index: `pip install ./FOLDER`, where FOLDER is {folder}.

## Model

Method {kind}: {paper}.

| network | parameters |
|---|---|
{networks}

Solvers{schedule}; `settings={{...}}` given to `from_pretrained` takes their place:

```json
{settings}
```

## Data

{data}

## Budget

| part | training images |
|---|---|
{budget}

## Metrics

{metrics}

## Licence

Weights: {licence}. The code in `multiscale/`: Apache-2.0. The images that it was trained on have terms of their own.
"""


def written(
    folder: Path,
    parts: list[Path],
    sizes: dict[str, int],
    settings: Sampled,
    licence: str,
    target: str,
    repo: str | None,
) -> str:
    """The card of the method in `folder`, models/METHOD.

    sizes: the parameters of each network. licence: of the weights, as the hub writes it. The example opens `repo`
    of the hub, without one the folder `target`.
    Raises ValueError for measurements that are damaged.
    """
    from huggingface_hub import ModelCardData

    experiment = experiment_of(folder)
    about = [models.about(part) for part in parts]
    kind, count = str(settings.kind), classes_of(about)
    data = experiment.get("data", {})
    papers: dict[str, str] = getattr(methods.component(kind), "PAPERS", {})
    links = [f"[{title}](https://arxiv.org/abs/{number})" for number, title in papers.items()]
    steps = [each["schedule"] for each in about if "schedule" in each]
    front = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "multiscale", kind],
    )
    return CARD.format(
        front=f"---\n{front.to_yaml()}\n---\n\n",
        name=folder.absolute().name,
        kind=kind,
        size=f" of {data['resolution']} pixels" if "resolution" in data else "",
        place=repo or target,
        folder=f"its download (`hf download {repo} --local-dir FOLDER`)" if repo else "this folder",
        classes="classes=[0, 1], " if count > 1 else "",
        and_class=" and class k" if count > 1 else "",
        about_classes=f"Classes: 0 to {count - 1}." if count > 1 else "It has no classes.",
        paper=f"{' and '.join(links)}, or the control that is compared with it" if links else kind,
        networks="\n".join(f"| {name} | {size:,} |" for name, size in sizes.items()),
        schedule=f" (the schedule of the student, {steps[0]}, is part of its config)" if steps else "",
        settings=json.dumps(settings.model_dump(exclude={"repeat_of", "steps"}), indent=2),
        data=data_of(data),
        budget="\n".join(f"| {part.name} | {trained_on(part)} |" for part in parts),
        metrics=metrics_of(folder, experiment, settings),
        licence=licence,
    )


def experiment_of(folder: Path) -> dict[str, Any]:
    """The experiment beside models/, params.yaml; empty where there is none. Raises ValueError for other files."""
    path = folder.absolute().parent.parent / "params.yaml"
    if not path.is_file():
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return dict(YAML(typ="safe").load(path))
    except (YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {models.first_line(error)}; allowed: the experiment that `models` is of") from None


def data_of(data: dict[str, Any]) -> str:
    """What the data of an experiment are."""
    if not data:
        return "Unknown: no params.yaml was beside models/ at the export."
    colours = {1: "grey", 3: "RGB"}.get(data.get("channels", 0), "")
    source = ", ".join(str(data[key]) for key in ("source", "url", "revision") if data.get(key))
    return f"{data.get('name')} ({source}), {data.get('resolution')} pixels, {colours}."


def trained_on(part: Path) -> str:
    """The images that a part was trained on, by its history."""
    path = part / "history.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []
    return f"{json.loads(rows[-1])['images']:,}" if rows else "unknown"


def metrics_of(folder: Path, experiment: dict[str, Any], settings: Sampled) -> str:
    """The measurements of the method, with their protocol and the solvers of the images."""
    name = folder.absolute().name
    path = folder.absolute().parent.parent / "reports" / "measurements" / f"{name}.json"
    if not path.exists():
        return "Not measured."
    found = read_sealed_json(path)
    protocol = {key: value for key, value in found.get("protocol", {}).items() if value is not None}
    metric = protocol.get("metric", "")
    rows = [
        f"| {title.format(metric=metric)} | {found[key]:.4g}{_spread(found.get(f'{key}_se'))} |"
        for key, title in METRICS.items()
        if found.get(key) is not None
    ]
    return "\n".join(
        [
            *("| metric | value |", "|---|---|", *rows, ""),
            "An interval is one standard error over the images of one training. The protocol:",
            *("", *(f"- {key}: {value}" for key, value in protocol.items()), ""),
            measured_with(settings, experiment.get("methods", {}).get(name)),
        ]
    )


def measured_with(settings: Sampled, section: dict[str, Any] | None) -> str:
    """Whether the images that were measured were made with these settings or with those of the experiment."""
    if section is None:
        return "It is unknown which solvers the measured images were made with."
    try:
        same = type(settings).model_validate(section | {"steps": settings.steps}) == settings
    except ValidationError as error:
        raise ValueError(f"params.yaml: methods: {fault_of(error)}") from None
    if same:
        return "The measured images were made with the solvers above."
    return f"The measured images were made with other solvers than those above: `settings={section}`."


def _spread(error: float | None) -> str:
    return "" if error is None else f" +- {error:.2g}"
