"""The files of one slide's heatmap: which there are, how each is written, and what is known of them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from heatmaps import Heatmap, OverlayStyle, draw_overlay, write_geojson
from heatmaps.contours import OutlineSpec, write_outlines
from heatmaps.geojson import TileFilter
from heatmaps.ome_tiff import write_ome_tiff
from heatmaps.ome_zarr import write_ome_zarr
from heatmaps.scores import write_scores
from tiling.patches import PatchStore
from wsi.publish import fingerprint, write_json

from .config import HeatmapSpec
from .folder import RunFolder

VERSION = 3
SCORES = "scores"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn, on which tiles, and how.

    display  (low, high) that the colours are spread over; note says whose range that is
    """

    heatmap: Heatmap
    tiles: PatchStore
    spec: HeatmapSpec
    display: tuple[float, float]
    note: str

    @property
    def mpp(self) -> float:
        """µm per level-0 pixel."""
        return float(self.tiles.attrs["slide"]["mpp"])

    @property
    def slide_size(self) -> tuple[int, int]:
        """(width, height) in level-0 pixels."""
        return int(self.tiles.attrs["slide"]["width"]), int(self.tiles.attrs["slide"]["height"])


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file.

    suffix    of its name, after the slide's id; in parts: more of such a name, and `.part-01` before the suffix
    write     writes it from its drawing, and returns how many objects it has, or None
    settings  fields of HeatmapSpec that shape it
    """

    suffix: str
    write: Callable[[Drawing, Path], int | None]
    settings: tuple[str, ...] = ()


def _scores(drawing: Drawing, path: Path) -> None:
    write_scores(drawing.heatmap, path)


def _geojson(drawing: Drawing, path: Path) -> int:
    asked = drawing.spec
    tiles = TileFilter(asked.min_score, top_k=asked.top_k)
    return write_geojson(drawing.heatmap, path, tiles=tiles, display=drawing.display, max_objects=asked.max_objects)


def _png(drawing: Drawing, path: Path) -> None:
    shown = drawing.tiles.thumbnail
    style = OverlayStyle(max_px=drawing.spec.max_px, display=drawing.display, note=drawing.note)
    draw_overlay(shown.pixels, shown.scale, drawing.heatmap, path, drawing.mpp, style)


def _ome_tiff(drawing: Drawing, path: Path) -> None:
    write_ome_tiff(drawing.heatmap, path, drawing.slide_size, drawing.mpp, display=drawing.display)


def _ome_zarr(drawing: Drawing, path: Path) -> None:
    write_ome_zarr(drawing.heatmap, path, drawing.mpp, display=drawing.display)


def _outlines(drawing: Drawing, path: Path, kind: str) -> int:
    asked = drawing.spec
    spec = OutlineSpec(kind, asked.levels, asked.min_area_um2, asked.tolerance_um)
    return write_outlines(drawing.heatmap, path, drawing.mpp, spec, drawing.display)


_OUTLINES = ("levels", "min_area_um2", "tolerance_um")
FORMATS: Mapping[str, Format] = {
    SCORES: Format(".scores.npz", _scores),
    "geojson": Format(".geojson.gz", _geojson, ("min_score", "top_k", "max_objects")),
    "png": Format(".png", _png, ("max_px",)),
    "regions": Format(".regions.geojson.gz", partial(_outlines, kind="regions"), _OUTLINES),
    "contours": Format(".contours.geojson.gz", partial(_outlines, kind="contours"), _OUTLINES),
    "ome-tiff": Format(".ome.tif", _ome_tiff),
    "ome-zarr": Format(".ome.zarr", _ome_zarr),
}


@dataclass(frozen=True, slots=True)
class HeatmapFiles:
    """The files of one score of one slide by one model, and the record beside them, <slide_id>.json."""

    stem: Path

    @classmethod
    def of(cls, folder: RunFolder, model: str, slide_id: str, score: str = "prediction") -> "HeatmapFiles":
        return cls(folder.overlay(model, slide_id, score).with_suffix(""))

    @property
    def sidecar(self) -> Path:
        return self._path(".json")

    @property
    def gallery(self) -> Path:
        return self._path(".tiles")

    def recorded(self) -> dict[str, Any]:
        """What the record says, {} where there is none."""
        return json.loads(self.sidecar.read_text(encoding="utf-8")) if self.sidecar.is_file() else {}

    def to_write(self, spec: HeatmapSpec, drawn: str) -> dict[str, str]:
        """Formats that are asked for and not there as asked for, each with its mark; drawn: fingerprint of what is
        drawn and of what its colours are spread over."""
        facts = self.recorded()
        known = facts.get("formats", {})
        return {
            name: mark
            for name in (SCORES, *spec.formats)
            if known.get(name) != (mark := mark_of(name, spec, drawn)) or not self._is_there(name, facts)
        }

    def write(self, drawing: Drawing, wanted: Mapping[str, str], facts: Mapping[str, Any]) -> None:
        """Write the formats `wanted` (see `to_write`), and the record last.

        facts  what the record is to say of the heatmap, its `prediction` among it. What the record said of files of
               another prediction is forgotten: they are to be cleared first
        """
        before = self.recorded()
        if before.get("prediction") != facts["prediction"]:
            before = {}
        marks, files = dict(before.get("formats", {})), dict(before.get("files", {}))
        objects = before.get("objects")
        for name, mark in wanted.items():
            for old in [file for file, of in files.items() if of == name]:
                _remove(self.stem.parent / old)
                del files[old]
            number = FORMATS[name].write(drawing, self._path(FORMATS[name].suffix))
            objects = number if name == "geojson" else objects
            marks[name] = mark
            files |= {path.name: name for path in self._found(name)}
        heatmap = drawing.heatmap
        drawn: dict[str, Any] = {"score": heatmap.name, "class": heatmap.class_name, "limits": heatmap.limits}
        drawn |= {"display": list(drawing.display), "tiles": heatmap.n_tiles, "objects": objects}
        sums = {name: checksum_of(self.stem.parent / name) for name in files}
        drawn |= {"formats": marks, "files": files, "checksums": sums}
        kept = {"gallery": before["gallery"]} if "gallery" in before and self.gallery.is_dir() else {}
        write_json(self.sidecar, {**kept, **facts, **drawn}, sealed=True)

    def write_empty(self, facts: Mapping[str, Any]) -> bool:
        """The record of a slide without tissue; files of an earlier run that found some are removed. Returns whether it
        was there already."""
        wanted, known = {**facts, "objects": 0}, self.recorded()
        if {key: value for key, value in known.items() if key != "checksum"} == wanted:
            return True
        self.clear()
        write_json(self.sidecar, wanted, sealed=True)
        return False

    def clear(self) -> None:
        """Remove the files of all formats, and the pictures of tiles; the record stays until there is another."""
        for path in (*(path for name in FORMATS for path in self._found(name)), self.gallery):
            _remove(path)

    def all_files(self) -> list[Path]:
        """What is there, the record among it."""
        found = [path for name in FORMATS for path in self._found(name)]
        return [*found, *(path for path in (self.sidecar,) if path.is_file())]

    def by_format(self) -> dict[str, Path]:
        """The file of each format that is there, of one in parts the first."""
        return {name: found[0] for name in FORMATS if (found := self._found(name))}

    def _is_there(self, name: str, facts: Mapping[str, Any]) -> bool:
        listed = [file for file, of in facts.get("files", {}).items() if of == name]
        return bool(listed) and all((self.stem.parent / file).exists() for file in listed)

    def _found(self, name: str) -> list[Path]:
        """Files of a format that are there: one, or its parts."""
        suffix = FORMATS[name].suffix
        found = [path for path in (self._path(suffix),) if path.exists()]
        for number in count(1):
            if not (part := self._path(f".part-{number:02d}{suffix}")).exists():
                return found
            found.append(part)
        raise AssertionError("parts have an end")

    def _path(self, suffix: str) -> Path:
        return self.stem.parent / f"{self.stem.name}{suffix}"


def mark_of(name: str, spec: HeatmapSpec, drawn: str) -> str:
    """Fingerprint of one file: what is drawn (see `to_write`), and the settings that shape this format."""
    plain = asdict(spec)
    return fingerprint(VERSION, name, {key: plain[key] for key in FORMATS[name].settings}, drawn)


def checksum_of(path: Path) -> str:
    """crc32c of a file, or of a folder's files in the order of their names, as eight hex digits."""
    import google_crc32c

    crc = 0
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            crc = google_crc32c.extend(crc, file.relative_to(path).as_posix().encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    crc = google_crc32c.extend(crc, block)
    return f"{crc:08x}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
