"""Scores on tiles, and the files in which people look at them: QuPath GeoJSON, PNG overlay, HTML report."""

from .geojson import write_geojson
from .geojson_read import check_qupath, read_geojson
from .heatmap import Heatmap, build_heatmap
from .overlay import OverlayStyle, draw_overlay, thumbnail_jpeg

__all__ = [
    "Heatmap",
    "OverlayStyle",
    "build_heatmap",
    "check_qupath",
    "draw_overlay",
    "read_geojson",
    "thumbnail_jpeg",
    "write_geojson",
]
