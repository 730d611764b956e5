"""WMGM's theory in figures: condition numbers and Euler steps of Gaussian 1/f^2 fields, and of the recipe's own images.

    python -m benchmarks.wavelet_theory        # after `dvc repro`, for the images

Pixels against whitened wavelet bands, in closed form: no network, no sampling noise.
"""

from __future__ import annotations

from benchmarks.common import save
from multiscale.core.storage import read_json
from multiscale.methods.wmgm import theory
from stages.common.paths import DECOMPOSED
from stages.reporting.wavelets import ERRORS, RESOLUTIONS


def main() -> None:
    images = DECOMPOSED / "wavelet" / "statistics.json"
    save(
        "wavelet_theory",
        {
            "condition_numbers_of_fields": theory.field_conditioning([8, *RESOLUTIONS]),
            "euler_steps": {kind: theory.steps_table(RESOLUTIONS, error, kind) for kind, error in ERRORS.items()},
            "condition_numbers_of_images": theory.data_conditioning(read_json(images)) if images.exists() else None,
        },
    )


if __name__ == "__main__":
    main()
