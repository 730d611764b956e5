"""Writes a trained method as a pipeline of diffusers, with the code that it needs and a card.

The folder holds model_index.json and the file of the pipeline, a folder for each network and one for the autoencoder
(config and weights), README.md, and the package `multiscale` with what sampling from this one method takes:
`pip install FOLDER` installs it without the stages and flows of the project, and without what these depend on.
"""

from __future__ import annotations

import json
import keyword
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import multiscale
from multiscale import card, methods, model, prompts
from multiscale.core import models
from multiscale.core.models import first_line
from multiscale.core.settings import Sampled
from multiscale.core.storage import atomic_folder, write_json
from multiscale.networks import autoencoder

PACKAGES = ("diffusers", "numpy", "pillow", "pydantic", "safetensors", "torch", "tqdm")
LEFT = ("__pycache__", "evaluation")  # folders of the package that no sampler imports
RESERVED = ("channels", "self", "settings", "vae")

PIPELINE = '''"""The pipeline of {name}; its code is the package `multiscale` beside this file."""

from multiscale.pipeline import MultiscalePipeline


class {title}(MultiscalePipeline):
    def __init__(self, {components}, channels=None, settings=None):
        super().__init__({networks}, {vae}, channels, settings)
'''
NETWORK = '''"""A network of this pipeline."""

from multiscale.pipeline import Network  # noqa: F401
'''
PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "multiscale"
version = "{version}"
description = "What sampling from {name} takes of Multiscale"
requires-python = ">=3.11"
license = "Apache-2.0"
dependencies = {needs}

[tool.setuptools.packages.find]
include = ["multiscale*"]
"""


def name_of(part: str) -> str:
    """The name of a part as that of an argument: msf-0 is msf_0."""
    name = part.replace("-", "_")
    return name if name.isidentifier() and not keyword.iskeyword(name) and name not in RESERVED else f"part_{name}"


def export(folder: Path, to: Path, settings: Sampled, licence: str, repo: str | None = None) -> None:
    """Writes the trained method in `folder`, models/METHOD, with its solvers, into the new folder `to`.

    licence: of the weights, as the hub writes it. repo: of the hub, for the example on the card; None: the folder.
    Raises ValueError for a target that exists, a `repo` that can be none, and a folder without a method to export.
    """
    if to.exists() or to.is_symlink():
        raise ValueError(f"--to: {to} is there already; allowed: a folder that is not there yet")
    if repo:
        check_repo(repo)
    parts = model.parts_in(folder)
    kind = models.about(parts[0])["kind"]
    sampler = model.load(folder, settings, "fp32")  # refuses what is damaged, incomplete or foreign
    if methods.component(kind) is None:
        raise ValueError(f"{folder}: kind: {kind!r} is not allowed; allowed: a method with a module `component`")
    if prompts.reads_text(folder):
        raise ValueError(f"{folder}: reads text; allowed: a method without classes, or with them")
    try:
        with atomic_folder(to) as out:
            write(folder.absolute().name, kind, parts, settings, out)
            sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in sampler.networks.items()}
            (out / "README.md").write_text(card.written(folder, parts, sizes, settings, licence, to.name, repo))
    except OSError as error:
        raise ValueError(f"--to: {to}: {first_line(error)}; allowed: a folder that can be written") from None


def write(name: str, kind: str, parts: list[Path], settings: Sampled, out: Path) -> None:
    """Writes the components, what joins them, and the code."""
    from diffusers import __version__ as of_diffusers

    from multiscale.pipeline import Network

    title = "Multiscale" + re.sub(r"\W", "", name.title())
    module = f"multiscale_{name.replace('-', '_')}"  # diffusers loads all pipelines of a process into one package
    index: dict[str, Any] = {"_class_name": [module, title], "_diffusers_version": of_diffusers}
    networks = [name_of(part.name) for part in parts]
    for component, part in zip(networks, parts):
        network = Network(models.about(part))
        models.load_weights(network.net, part)
        network.save_pretrained(out / component)
        (out / component / "network.py").write_text(NETWORK)
        index[component] = ["network", "Network"]
    codec = autoencoder.codec_of(parts[0])
    if codec.vae:
        codec.vae.save_pretrained(out / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    write_json(out / "model_index.json", index | {"channels": codec.channels, "settings": settings.model_dump()})
    code = PIPELINE.format(
        name=name,
        title=title,
        components=", ".join([*networks, *(["vae"] if codec.vae else [])]),
        networks="{" + ", ".join(f'"{each}": {each}' for each in networks) + "}",
        vae="vae" if codec.vae else None,
    )
    (out / f"{module}.py").write_text(code)
    write_code(name, kind, out)


def write_code(name: str, kind: str, out: Path) -> None:
    """Copies the package without other methods, and writes what installs it."""
    package = Path(multiscale.__file__).parent
    others = [method for method in methods.names() if method != kind]
    shutil.copytree(package, out / "multiscale", ignore=shutil.ignore_patterns(*LEFT, *others))
    if (terms := package.parent / "LICENSE").exists():
        shutil.copyfile(terms, out / "LICENSE")
    packages = (*PACKAGES, *getattr(methods.component(kind), "PACKAGES", ()))
    needs = [f"{each}>={version(each).partition('+')[0]}" for each in packages]
    (out / "pyproject.toml").write_text(
        PROJECT.format(version=version("multiscale"), name=name, needs=json.dumps(needs))
    )


def check_repo(repo: str) -> None:
    """Raises ValueError for what is no name of a repository of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ValueError(f"--push: {repo!r} is not allowed; allowed: OWNER/NAME") from None


def push(folder: Path, repo: str) -> str:
    """Uploads an exported folder to a repository of the Hugging Face hub, made if needed, and returns its address.

    Raises ValueError where the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        address = HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder)
    except (OSError, HTTPError) as error:
        allowed = "a repository of the hub, with a token that may write there (hf auth login)"
        raise ValueError(f"--push: {repo}: {first_line(error)}; allowed: {allowed}; {folder} is written") from None
    return str(address)
