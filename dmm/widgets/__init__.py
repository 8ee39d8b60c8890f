"""Live figures that need no server: Python computes every number once, and the page only chooses which ones to draw.

An `Explorer` is controls, data, panels and read-outs, written down as one JSON specification. The same script draws it
in Jupyter and Colab (through anywidget) and on the static site (through the figure's own HTML), and the functions
`values` and `readout_texts` repeat its arithmetic here, so that a test can compare what a page shows with what Python
says for the same setting.
"""

from dmm.widgets.controls import Control, Select, Settings, Slider, Spec, checked_settings, start_settings, steps
from dmm.widgets.explorer import PAYLOAD_LIMIT, Explorer
from dmm.widgets.formats import format_value
from dmm.widgets.panels import (
    Bars,
    Heatmap,
    Line,
    Lines,
    Mark,
    Panel,
    Paths,
    Plane,
    Readout,
    Skeleton,
    Strip,
    data_names,
    readout_texts,
)
from dmm.widgets.sources import COMPUTED, ScanSource, Source, Table, values

__all__ = [
    "COMPUTED",
    "PAYLOAD_LIMIT",
    "Bars",
    "Control",
    "Explorer",
    "Heatmap",
    "Line",
    "Lines",
    "Mark",
    "Panel",
    "Paths",
    "Plane",
    "Readout",
    "ScanSource",
    "Select",
    "Settings",
    "Skeleton",
    "Slider",
    "Source",
    "Spec",
    "Strip",
    "Table",
    "checked_settings",
    "data_names",
    "format_value",
    "readout_texts",
    "start_settings",
    "steps",
    "values",
]
