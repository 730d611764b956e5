"""How images were measured, in words: the protocol beside each measurement. Rows that share it may share a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from multiscale.core.storage import digest_files
from multiscale.evaluation import features
from stages.schema.data import Evaluate

Row = dict[str, Any]


def protocol_of(section: Evaluate, about: Row, made: Mapping[str, str], count: int, layers: Sequence[Tensor]) -> Row:
    """How `count` images were measured; about: the reference. made: how the images were made."""
    first, second = made.get("first_seed"), section.second_extractor
    return {
        "extractor": section.extractor,
        "metric": features.LABELS[section.extractor],
        "resize": features.RESIZES[section.extractor],
        "features": layers[0].shape[1],
        "second_extractor": second,
        "second_metric": features.LABELS[second] if second else None,
        "second_resize": features.RESIZES[second] if second else None,
        "n": count,
        "labels": made.get("labels"),
        "seeds": None if first is None else f"{first}..{int(first) + count - 1}",
        "n_reference": about["n"],
        "reference": about["reference"],
        "n_test": about["n_test"],
        "test": about["test"],
        "estimator": "KID over all pairs",
        "is_splits": section.is_splits,
        "prc_neighborhood": section.prc_neighborhood,
    }


def published(section: Evaluate, about: Row, spatial: bool) -> Row:
    """What differs from the protocol of training images, or is measured beside it; nothing otherwise."""
    protocol: Row = {}
    if spatial:
        protocol["sfid"] = "mixed_6/conv, 7 channels"
    if section.resolution:
        protocol["resolution"] = f"{section.resolution}, Lanczos"
    if folder := section.dinov2:
        protocol["dinov2"] = f"{weights_of(Path(folder))}, bicubic antialiased to 224"
    if name := about.get("against"):
        protocol["against"] = f"{name}{', by its statistics' if about['statistics'] else ''}"
        protocol |= {"against_images": about["split"] is None, "prc_sets": "whole"}
    return protocol


def weights_of(folder: Path) -> str:
    """The name and the digest of a folder of weights."""
    return f"{folder.name} {digest_files(sorted(folder.glob('*.safetensors')))[:16]}"
