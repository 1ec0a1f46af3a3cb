// Scores as a picture of one pixel for each cell of the grid: a million tiles are drawn as quickly as a hundred.

import { colourTable, stepOf, STEPS } from "./colormap";
import type { TileField } from "./field";
import type { View } from "./overlay";

export interface Paint {
  map: string;
  low: number;
  high: number;
  /** Scores below are not drawn; -Infinity draws all. */
  threshold: number;
}

/** Above this many tiles in view single rectangles are slower than the raster, and smaller than can be told apart. */
const MOST_RECTANGLES = 20_000;

export class ScoreRaster {
  private readonly cells: Float32Array;
  private readonly picture = document.createElement("canvas");

  constructor(
    readonly field: TileField,
    readonly values: Float32Array,
  ) {
    this.cells = averaged(field, values);
    this.picture.width = Math.max(1, field.columns);
    this.picture.height = Math.max(1, field.rows);
  }

  /** Colours every cell anew. Cells without a tile, or with no number, stay empty. */
  paint(paint: Paint): void {
    if (!this.cells.length) return;
    const context = this.picture.getContext("2d")!;
    const pixels = context.createImageData(this.picture.width, this.picture.height);
    const words = new Uint32Array(pixels.data.buffer);
    const colours = packed(paint.map);
    const scale = paint.high > paint.low ? (STEPS - 1) / (paint.high - paint.low) : 0;
    for (let i = 0; i < this.cells.length; i++) {
      const value = this.cells[i]!;
      if (!(value >= paint.threshold)) continue; // NaN, too, is no score
      const step = scale ? (value - paint.low) * scale : value >= paint.high ? STEPS - 1 : 0;
      words[i] = colours[step <= 0 ? 0 : step >= STEPS - 1 ? STEPS - 1 : Math.round(step)]!;
    }
    context.putImageData(pixels, 0, 0);
  }

  /** Draws the part in view; `context` is in level-0 pixels relative to the view's corner. */
  draw(context: CanvasRenderingContext2D, view: View, paint: Paint): void {
    if (this.field.exact || !this.fewInView(view)) this.drawRaster(context, view);
    else this.drawTiles(context, view, paint);
  }

  private fewInView(view: View): boolean {
    const { span } = this.field;
    return ((view.right - view.left) / span + 1) * ((view.bottom - view.top) / span + 1) < MOST_RECTANGLES;
  }

  private drawRaster(context: CanvasRenderingContext2D, view: View): void {
    const { originX, originY, cellX, cellY } = this.field;
    const left = Math.max(0, Math.floor((view.left - originX) / cellX));
    const top = Math.max(0, Math.floor((view.top - originY) / cellY));
    const right = Math.min(this.picture.width, Math.ceil((view.right - originX) / cellX));
    const bottom = Math.min(this.picture.height, Math.ceil((view.bottom - originY) / cellY));
    if (right <= left || bottom <= top) return;
    context.imageSmoothingEnabled = cellX * view.scale < 1; // averaged where several share a pixel, else sharp
    context.drawImage(
      this.picture,
      left,
      top,
      right - left,
      bottom - top,
      originX + left * cellX - view.left,
      originY + top * cellY - view.top,
      (right - left) * cellX,
      (bottom - top) * cellY,
    );
  }

  private drawTiles(context: CanvasRenderingContext2D, view: View, paint: Paint): void {
    const { xy, span } = this.field;
    const table = colourTable(paint.map);
    this.field.visible(view.left, view.top, view.right, view.bottom, (tile) => {
      const value = this.values[tile]!;
      if (!(value >= paint.threshold)) return;
      const at = 3 * stepOf(value, paint.low, paint.high);
      context.fillStyle = `rgb(${table[at]}, ${table[at + 1]}, ${table[at + 2]})`;
      context.fillRect(xy[2 * tile]! - view.left, xy[2 * tile + 1]! - view.top, span, span);
    });
  }
}

/** Mean score of the tiles over each cell, NaN where there is none. */
function averaged(field: TileField, values: Float32Array): Float32Array {
  const { columns, rows, perX, perY } = field;
  const cells = new Float32Array(columns * rows).fill(NaN);
  const seen = perX * perY > 1 || !field.exact ? new Uint16Array(cells.length) : null;
  for (let tile = 0; tile < field.count; tile++) {
    const value = values[tile]!;
    if (Number.isNaN(value)) continue;
    const [column, row] = field.cell(tile);
    for (let y = row; y < Math.min(rows, row + perY); y++) {
      for (let x = column; x < Math.min(columns, column + perX); x++) {
        const at = y * columns + x;
        const before = seen ? seen[at]! : 0;
        cells[at] = before ? (cells[at]! * before + value) / (before + 1) : value;
        if (seen) seen[at] = before + 1;
      }
    }
  }
  return cells;
}

/** The colour table as words of opaque pixels, in this machine's byte order. */
function packed(map: string): Uint32Array {
  const table = colourTable(map);
  const bytes = new Uint8Array(4 * STEPS);
  for (let step = 0; step < STEPS; step++) bytes.set([...table.subarray(3 * step, 3 * step + 3), 255], 4 * step);
  return new Uint32Array(bytes.buffer);
}
