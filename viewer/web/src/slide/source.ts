// The slide's deep-zoom pyramid as OpenSeadragon asks for it.

import OpenSeadragon from "openseadragon";
import { tileUrl, type Slide } from "../api";

/** Tiles of the server, from the level that fits into one tile up to the slide itself. */
export function slideSource(slide: Slide): OpenSeadragon.TileSource {
  const source = new OpenSeadragon.TileSource({
    width: slide.width,
    height: slide.height,
    tileSize: slide.tile_px,
    tileOverlap: 0,
    minLevel: overviewLevel(slide),
    maxLevel: slide.max_level,
  });
  source.getTileUrl = (level, x, y) => tileUrl(slide.id, level, x, y);
  return source;
}

/** The finest level that is one tile: coarser ones would only cost requests. */
export function overviewLevel(slide: Slide): number {
  const halvings = Math.ceil(Math.log2(Math.max(slide.width, slide.height) / slide.tile_px));
  return Math.max(0, slide.max_level - Math.max(0, halvings));
}
