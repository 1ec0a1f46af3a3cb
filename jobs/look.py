"""What a person looks at before any model: each slide's tissue and tiles as a picture, and all of them on a sheet."""

import numpy as np
from numpy.typing import NDArray

from heatmaps.contact import ContactCard, write_contact_sheet
from heatmaps.tissue_map import TissueMap, draw_tissue, write_outlines
from tiling.patches import PatchStore, open_patches
from tiling.spec import FLAGS
from tiling.tissue import Tissue, tissue_outline
from wsi.errors import StoreError

from .folder import RunFolder
from .receipts import DONE, EMPTY, FAILED, Receipt, latest, read_receipts
from .stored import made_since


def look_at_tissue(store: PatchStore, folder: RunFolder) -> None:
    """Write tissue/<slide_id>.jpg and .geojson of a tiled slide, where they are missing or older than the store."""
    picture, outlines = folder.tissue_picture(store.slide_id), folder.tissue_outlines(store.slide_id)
    if made_since(picture, store) and made_since(outlines, store):
        return
    thumbnail, found = store.thumbnail, _tissue_map(store)
    outlines.parent.mkdir(parents=True, exist_ok=True)
    write_outlines(found, outlines)
    draw_tissue(thumbnail.pixels, thumbnail.scale, found, picture)


def make_contact_sheet(folder: RunFolder, command: str) -> str:
    """Write report/tissue.html over all slides that the run folder knows, of this command or an earlier one; returns
    its path."""
    receipts = latest(read_receipts(folder.receipts("tile")))
    stored = {path.name.removesuffix(".zarr") for path in folder.tiles("*").parent.glob("*.zarr")}
    cards = [_card(slide_id, receipts.get(slide_id), folder) for slide_id in sorted(stored | receipts.keys())]
    write_contact_sheet(cards, folder.contact_sheet, command)
    return str(folder.contact_sheet)


def why_empty(store: PatchStore) -> str:
    """Why a tiled slide has no tiles, in one clause; empty for one that has."""
    if len(store.grid):
        return ""
    if left_out := store.notes.get("left_out"):
        return f"all tiles were left out ({', '.join(f'{flag} {count:,}' for flag, count in left_out.items())})"
    if not store.attrs["tissue_um2"]:
        return "no tissue"
    return "tissue, but no tile fits (tile size, regions, min_tissue)"


def flag_counts(store: PatchStore) -> dict[str, int]:
    """Flag → how many of the slide's tiles have it, without those that none has."""
    counts = {flag: int(store.array(f"flag_{flag}").sum()) for flag in FLAGS if store.has(f"flag_{flag}")}
    return {flag: count for flag, count in counts.items() if count}


def _tissue_map(store: PatchStore) -> TissueMap:
    grid, pen = store.grid, None
    if store.has("pen"):
        marks = store.array("pen")
        pen = tissue_outline(Tissue(marks, store.mask_scale, 0.0)) if marks.any() else None
    flagged = {flag: grid.xy[store.array(f"flag_{flag}")] for flag in flag_counts(store)}
    for flag, corners in store.notes.get("left_out_xy", {}).items():
        places = np.array(corners, np.int64).reshape(-1, 2)
        flagged[flag] = np.concatenate((flagged[flag], places)) if flag in flagged else places
    outline, unread = store.attrs["tissue_outline"], grid.xy[_unread(store)]
    return TissueMap(store.slide_id, outline, pen, grid.xy, grid.span_px, flagged, unread)


def _unread(store: PatchStore) -> NDArray[np.bool_]:
    """bool (n,): tiles that could not be read, by their pixels or, where those are not kept, by their sharpness."""
    if store.has("ok"):
        return ~store.array("ok").astype(np.bool_)
    if store.has("quality_sharpness"):
        return np.isnan(store.array("quality_sharpness"))
    return np.zeros(len(store.grid), np.bool_)


def _card(slide_id: str, receipt: Receipt | None, folder: RunFolder) -> ContactCard:
    if receipt is not None and receipt.status == FAILED:
        return ContactCard(slide_id, FAILED, None, problem=receipt.problem)
    try:
        store = open_patches(folder.tiles(slide_id))
    except StoreError as error:
        return ContactCard(slide_id, FAILED, None, problem=error.problem)
    slide, picture = store.attrs["slide"], folder.tissue_picture(slide_id)
    tiles = len(store.grid)
    unread = store.thumbnail.unread.mean()
    remarks = (why_empty(store), f"{unread:.1%} of it cannot be read" if unread else "")
    return ContactCard(
        slide_id,
        DONE if tiles else EMPTY,
        picture if picture.exists() else None,
        tiles,
        store.attrs["tissue_um2"] / 1e6,
        (slide["width"] * slide["mpp"] / 1000, slide["height"] * slide["mpp"] / 1000),
        tuple(flag_counts(store).items()),
        tuple(store.notes.get("left_out", {}).items()),
        store.grid.found,
        int(_unread(store).sum()),
        "; ".join(remark for remark in remarks if remark),
    )
