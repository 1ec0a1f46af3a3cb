"""What a person looks at before any model: each slide's tissue and tiles as a picture, and all of them on a sheet."""

from collections.abc import Sequence

from heatmaps.contact import ContactCard, write_contact_sheet
from heatmaps.tissue_map import TissueMap, draw_tissue, write_outlines
from tiling.patches import PatchStore, open_patches
from tiling.spec import FLAGS
from tiling.tissue import Tissue, tissue_outline
from wsi.errors import StoreError

from .folder import RunFolder
from .manifest import SlideRecord
from .receipts import DONE, EMPTY, FAILED, Receipt
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


def make_contact_sheet(
    records: Sequence[SlideRecord], failed: dict[str, Receipt], folder: RunFolder, command: str
) -> str:
    """Write report/tissue.html over all slides; returns its path."""
    write_contact_sheet([_card(record, failed, folder) for record in records], folder.contact_sheet, command)
    return str(folder.contact_sheet)


def flag_counts(store: PatchStore) -> dict[str, int]:
    """Flag → how many of the slide's tiles have it, without those that none has."""
    counts = {flag: int(store.array(f"flag_{flag}").sum()) for flag in FLAGS if f"flag_{flag}" in store.group}
    return {flag: count for flag, count in counts.items() if count}


def _tissue_map(store: PatchStore) -> TissueMap:
    grid, pen = store.grid, None
    if "pen" in store.group:
        marks = store.array("pen")
        pen = tissue_outline(Tissue(marks, store.mask_scale, 0.0)) if marks.any() else None
    flagged = {flag: grid.xy[store.array(f"flag_{flag}")] for flag in flag_counts(store)}
    return TissueMap(store.slide_id, store.attrs["tissue_outline"], pen, grid.xy, grid.span_px, flagged)


def _card(record: SlideRecord, failed: dict[str, Receipt], folder: RunFolder) -> ContactCard:
    slide_id = record.slide_id
    receipt = failed.get(slide_id)
    if receipt is not None and receipt.stage == "tile":
        return ContactCard(slide_id, FAILED, None, problem=receipt.problem)
    try:
        store = open_patches(folder.tiles(slide_id))
    except StoreError as error:
        return ContactCard(slide_id, FAILED, None, problem=error.problem)
    slide, picture = store.attrs["slide"], folder.tissue_picture(slide_id)
    tiles = len(store.grid)
    unread = store.thumbnail.unread.mean()
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
        f"{unread:.1%} of it cannot be read" if unread else "",
    )
