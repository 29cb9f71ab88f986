"""A run on the report page: what its arms came to, and its pictures at the size at which they can be read."""

import base64
import html
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from l2t_ray.headline import metric_named
from l2t_ray.reports.html_table import html_table
from l2t_ray.reports.tables import comparison, comparison_cells, comparison_headings

CAPTIONS = {
    "examples": "The first test images, what is marked on them, and what each student says",
    "class_iou": "Intersection over union of each class on the test images, a bar for each method",
    "precision_recall": "Precision over recall on the test images, a line for each method",
    "_and_error": "{} on the test images and validation error over the rounds, a line for each method",
    "loss_weights_over_rounds": "What the learned loss weighs up and down, over the rounds",
    "loss_weights": "The numbers of the learned loss at its end, beside those before",
    "loss_curves": "The curves of the learned loss, beside the identity that it began with",
    "loss_surfaces": "The learned loss over the two probabilities that it reads, beside cross-entropy",
    "confusion": "Test images or pixels by class (row) and answer (column), in percent of the class",
    "wrong_labels": "What the students memorise of wrong labels, over the rounds",
    "sample_weights": "Mean weight of samples with right labels and with wrong ones, over the rounds",
    "suspects": "The training labels that look most wrong, with what is suggested instead",
}
"""Of the pictures that the page shows, by file name, in their order; `_and_error` has the headline before it."""
_PIXELS_AN_INCH = 160 / 96
"""Of a picture, over those of a page."""


class ShownRun(NamedTuple):
    """A finished run.

    Attributes:
        summaries: of its arms, as `summary.json` holds them.
        pictures: PNG by file name, without its ending.
    """

    name: str
    data: str
    summaries: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, bytes]

    @property
    def anchor(self) -> str:
        """A name for links and files."""
        return re.sub(r"[^\w-]+", "-", f"run-{self.name}")

    @property
    def heading(self) -> str:
        return f"Run {self.name} on {self.data}"

    @property
    def captioned(self) -> list[tuple[str, str]]:
        """The pictures that are shown, with their captions."""
        found = []
        for key, caption in CAPTIONS.items():
            for name in self.pictures:
                if name == key or (key.startswith("_") and name.endswith(key)):
                    found.append((name, caption.format(metric_named(name.removesuffix(key)).title)))
        return found


def run_section(run: ShownRun) -> str:
    """Its part of the page, in HTML."""
    table = html_table(comparison_headings(run.summaries), comparison_cells(run.summaries), is_wide=True)
    pictures = "".join(_figure(run.pictures[name], caption) for name, caption in run.captioned)
    return f'<section id="{run.anchor}"><h2>{html.escape(run.heading)}</h2>{table}{pictures}</section>'


def run_markdown(run: ShownRun) -> str:
    """Its part of the Markdown, whose pictures are files named `figures/<anchor>-<name>.png`."""
    pictures = [f"![{caption}](figures/{run.anchor}-{name}.png)" for name, caption in run.captioned]
    return "\n\n".join([f"## {run.heading}", comparison(run.summaries).strip(), *pictures])


def _figure(png: bytes, caption: str) -> str:
    """At its natural size: where the page is narrower the picture moves, for smaller it could not be read."""
    width, height = (round(pixels / _PIXELS_AN_INCH) for pixels in struct.unpack(">II", png[16:24]))
    size = f'width="{width}" height="{height}" style="width: {width}px"'
    return (
        f'<figure class="picture"><div class="scroll" tabindex="0"><img alt="{html.escape(caption)}" {size} '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>'
        f"<figcaption>{html.escape(caption)}.</figcaption></figure>"
    )
