"""Scores on tiles, and the files in which people look at them: QuPath GeoJSON, PNG overlay, HTML report."""

from .contours import Outline, OutlineSpec, outlines, write_outlines
from .geojson import GeoPlan, TileFilter, plan_geojson, write_geojson
from .geojson_read import check_qupath, read_geojson
from .heatmap import Heatmap, build_heatmap
from .overlay import OverlayStyle, draw_overlay, thumbnail_jpeg
from .report import (
    Baseline,
    Confusion,
    Evaluation,
    Failure,
    Figure,
    FoldRow,
    Headline,
    Interval,
    Report,
    RocCurve,
    SlideRow,
    StageRow,
    write_report,
)

__all__ = [
    "Baseline",
    "Confusion",
    "Evaluation",
    "Failure",
    "Figure",
    "FoldRow",
    "GeoPlan",
    "Headline",
    "Heatmap",
    "Interval",
    "Outline",
    "OutlineSpec",
    "OverlayStyle",
    "Report",
    "RocCurve",
    "SlideRow",
    "StageRow",
    "TileFilter",
    "build_heatmap",
    "check_qupath",
    "draw_overlay",
    "outlines",
    "plan_geojson",
    "read_geojson",
    "thumbnail_jpeg",
    "write_geojson",
    "write_outlines",
    "write_report",
]
