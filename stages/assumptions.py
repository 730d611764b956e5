"""Says whether a dataset meets the assumptions of multi-scale generation, and prints the tables behind this.

spectrum      the power of each octave of frequencies, and the noise level that masks it
resolutions   the smallest resolution that is safe at each noise level of SwD's schedules
bands         conditioning and sparsity of wavelet bands (WMGM)
scales        the energy of the base and of the residuals (MSF)
information   the information that the noisy image x_t carries about the image at each resolution (SSD)
floor         what the autoencoder loses; needs the stages floor@real and floor@autoencoder
all           all of them

All but the floor need only the stage `download`; latents are analysed if they have been decomposed. The analyses use an
evenly spaced choice of at most 4096 training images.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"analysis": "one of those above"})

from stages.common.errors import refuse
from stages.reporting.findings import ANALYSES
from stages.reporting.observed import Data, look
from stages.reporting.page import Section
from stages.reporting.tables import columns
from stages.schema import Experiment

HEADINGS = ["assumption", "method", "data", "measured", "holds if", "holds", "in words"]
TITLE = "What multi-scale generation assumes of the data"


def sections(data: Data, names: list[str]) -> list[Section]:
    """What was found about the assumptions, then the table of each analysis."""
    found = [ANALYSES[name](data) for name in names]
    findings = [finding for each, _ in found for finding in each]
    broken = [f"{each.assumption} ({each.data}): no. {each.words}" for each in findings if not each.holds]
    held = (
        f"{len(findings) - len(broken)} of {len(findings)} assumptions hold, of {len(data.pixels):,} training images."
    )
    verdicts = Section(TITLE, [held, *broken], HEADINGS, [each.row for each in findings], [], badge="holds")
    return [verdicts, *(section for _, tables in found for section in tables)]


def text(section: Section) -> str:
    """A section as lines of text."""
    lines = columns([section.headings, *section.rows])
    return "\n".join([section.title, *section.lines, "", *lines])


def main(params: Experiment, analysis: str) -> None:
    if analysis not in (*ANALYSES, "all"):
        raise refuse("assumptions", "ANALYSIS", analysis, f"one of {', '.join((*ANALYSES, 'all'))}")
    found = sections(look(params), list(ANALYSES) if analysis == "all" else [analysis])
    print("\n\n".join(map(text, found)))
