// Where tiles lie: which is under a point, which are in view, and the lattice that most grids are.

/** Regular places along one axis: `first + i × pitch`; `exact` where every place is met to the pixel. */
interface Axis {
  first: number;
  pitch: number;
  count: number;
  exact: boolean;
}

const MOST_CELLS = 16_000_000;

/** Tiles of one size (`span` level-0 pixels) at `xy` = x0, y0, x1, y1 … */
export class TileField {
  readonly count: number;
  readonly columns: number;
  readonly rows: number;
  /** Cells of the raster: level-0 pixels a cell covers, and how many cells a tile covers. */
  readonly cellX: number;
  readonly cellY: number;
  readonly perX: number;
  readonly perY: number;
  readonly originX: number;
  readonly originY: number;
  /** Whether the raster of cells is the tiles to the pixel, so that nothing else need be drawn. */
  readonly exact: boolean;
  private readonly starts: Uint32Array;
  private readonly order: Uint32Array;
  private readonly across: number;
  private readonly down: number;
  private readonly bucket: number;

  constructor(
    readonly xy: Int32Array,
    readonly span: number,
  ) {
    this.count = xy.length / 2;
    const x = axisOf(xy, 0, span);
    const y = axisOf(xy, 1, span);
    let coarse = 1;
    const cells = () => ((x.count + span / x.pitch) * (y.count + span / y.pitch)) / coarse ** 2;
    while (cells() > MOST_CELLS) coarse *= 2;
    [this.cellX, this.cellY] = [x.pitch * coarse, y.pitch * coarse];
    [this.perX, this.perY] = [this.cellX, this.cellY].map((cell) => Math.max(1, Math.round(span / cell))) as [
      number,
      number,
    ];
    [this.originX, this.originY] = [x.first, y.first];
    this.columns = this.count ? Math.round((x.count - 1) / coarse) + this.perX : 0;
    this.rows = this.count ? Math.round((y.count - 1) / coarse) + this.perY : 0;
    this.exact = x.exact && y.exact && coarse === 1 && this.perX * x.pitch === span && this.perY * y.pitch === span;
    const extentX = (x.count - 1) * x.pitch + span;
    const extentY = (y.count - 1) * y.pitch + span;
    this.bucket = Math.max(span, Math.sqrt((extentX * extentY) / 4_000_000));
    this.across = this.count ? Math.floor(extentX / this.bucket) + 1 : 0;
    this.down = this.count ? Math.floor(extentY / this.bucket) + 1 : 0;
    [this.starts, this.order] = this.sorted();
  }

  /** Column and row of the raster that a tile begins at. */
  cell(tile: number): [number, number] {
    return [
      Math.round((this.xy[2 * tile]! - this.originX) / this.cellX),
      Math.round((this.xy[2 * tile + 1]! - this.originY) / this.cellY),
    ];
  }

  /** The tile under a point in level-0 pixels, the one with the nearest centre where several overlap; -1 without. */
  at(x: number, y: number): number {
    let best = -1;
    let nearest = Infinity;
    this.visible(x, y, x, y, (tile) => {
      const dx = x - this.xy[2 * tile]!;
      const dy = y - this.xy[2 * tile + 1]!;
      if (dx < 0 || dy < 0 || dx >= this.span || dy >= this.span) return;
      const distance = (dx - this.span / 2) ** 2 + (dy - this.span / 2) ** 2;
      if (distance < nearest) [best, nearest] = [tile, distance];
    });
    return best;
  }

  /** The next tile in a direction (-1, 0, 1 on each axis), of those that lie in that quarter; -1 without. */
  neighbour(tile: number, dx: number, dy: number): number {
    const x = this.xy[2 * tile]!;
    const y = this.xy[2 * tile + 1]!;
    const reach = 8 * this.span;
    let best = -1;
    let nearest = Infinity;
    this.visible(x - reach, y - reach, x + reach, y + reach, (other) => {
      const [ox, oy] = [this.xy[2 * other]! - x, this.xy[2 * other + 1]! - y];
      const along = ox * dx + oy * dy;
      const aside = Math.abs(ox * dy) + Math.abs(oy * dx);
      if (along <= 0 || aside > along) return;
      const distance = along + 2 * aside;
      if (distance < nearest) [best, nearest] = [other, distance];
    });
    return best;
  }

  /** Calls `see` with every tile that may touch a rectangle in level-0 pixels (a few beside it too). */
  visible(x0: number, y0: number, x1: number, y1: number, see: (tile: number) => void): void {
    if (!this.count) return;
    const [left, top] = [this.place(x0 - this.span, this.originX), this.place(y0 - this.span, this.originY)];
    const [right, bottom] = [this.place(x1, this.originX), this.place(y1, this.originY)];
    for (let row = Math.max(0, top); row <= Math.min(this.down - 1, bottom); row++) {
      for (let column = Math.max(0, left); column <= Math.min(this.across - 1, right); column++) {
        const at = row * this.across + column;
        for (let i = this.starts[at]!; i < this.starts[at + 1]!; i++) see(this.order[i]!);
      }
    }
  }

  private place(value: number, origin: number): number {
    return Math.floor((value - origin) / this.bucket);
  }

  /** Tiles by bucket: starts (buckets + 1) into the order of tiles. */
  private sorted(): [Uint32Array, Uint32Array] {
    const starts = new Uint32Array(this.across * this.down + 1);
    const bucketOf = (tile: number) =>
      this.place(this.xy[2 * tile + 1]!, this.originY) * this.across + this.place(this.xy[2 * tile]!, this.originX);
    for (let tile = 0; tile < this.count; tile++) starts[bucketOf(tile) + 1]!++;
    for (let i = 1; i < starts.length; i++) starts[i]! += starts[i - 1]!;
    const next = starts.slice();
    const order = new Uint32Array(this.count);
    for (let tile = 0; tile < this.count; tile++) order[next[bucketOf(tile)]!++] = tile;
    return [starts, order];
  }
}

/** The lattice along an axis. Places that follow none are binned at the tile's side, and `exact` says so. */
function axisOf(xy: Int32Array, axis: 0 | 1, span: number): Axis {
  const places = new Set<number>();
  for (let i = axis; i < xy.length; i += 2) places.add(xy[i]!);
  const sorted = Int32Array.from(places).sort();
  if (sorted.length < 2) return { first: sorted[0] ?? 0, pitch: span, count: sorted.length, exact: true };
  const steps = sorted.subarray(1).map((value, i) => value - sorted[i]!);
  const step = Math.min(span, steps.slice().sort()[steps.length >> 1]!); // a few tiles far apart are no coarser grid
  const range = sorted.at(-1)! - sorted[0]!;
  let index = 0;
  for (const gap of steps) index += Math.max(1, Math.round(gap / step));
  const pitch = step === span && range % span === 0 ? span : range / index;
  const first = sorted[0]!;
  const off = sorted.reduce((most, value) => {
    const place = (value - first) / pitch;
    return Math.max(most, Math.abs(place - Math.round(place)) * pitch);
  }, 0);
  if (off > 1.01 || pitch > 1.01 * span)
    return { first, pitch: span, count: Math.round(range / span) + 1, exact: false };
  return { first, pitch, count: index + 1, exact: Number.isInteger(pitch) && off < 1e-6 };
}
