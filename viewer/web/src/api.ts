// The server's API as types, and the only place that calls it.

export interface Session {
  title: string;
  kind: "run" | "folder" | "slide";
  synthetic: boolean;
  models: string[];
  /** Classes that a reviewer may choose, as the models and the manifest know them. */
  classes: string[];
  /** Whether reviews are kept: there is a run folder, and it can be written. */
  review: boolean;
  /** Name given with --reviewer; else the page asks for one before the first review. */
  reviewer: string | null;
  show_label: boolean;
  version: string;
  /** Another one each time that the viewer is started. */
  start: string;
}

export type SlideStatus = "done" | "empty" | "failed" | "waiting";
export type ReviewStatus = "open" | "accepted" | "rejected" | "relabelled";

export interface Said {
  status: "done" | "empty";
  predicted: string | null;
  /** Largest calibrated probability, or output where nothing was calibrated. */
  value: number | null;
  /** What `value` is: "probability", "softmax", "risk", "value" … */
  kind: string;
  /** Standard deviation between the networks, in units of `value`. */
  spread: number | null;
  /** All classes: name → probability (or output). */
  outputs: Record<string, number>;
  /** Classes of the conformal set, [] where the model has none. */
  set: string[];
  abstains: boolean | null;
  flags: string[];
  /** In [0, 1]: probability of the most urgent class; null where there is none. */
  urgency: number | null;
  /** In [0, 1]: entropy over its maximum, or 1 where the model abstains. */
  uncertainty: number | null;
}

export interface Card {
  id: string;
  status: SlideStatus;
  problem: string | null;
  /** By model name; {} without a prediction. */
  said: Record<string, Said>;
  tiles: number | null;
  failed_tiles: number;
  flags: string[];
  review: { status: ReviewStatus; label: string | null; who: string | null; when: string | null; comments: number; regions: number; suggested: number };
}

export interface Worklist {
  total: number;
  offset: number;
  slides: Card[];
  /** Over all slides, whatever the filter. */
  counts: { status: Record<string, number>; review: Record<string, number>; predicted: Record<string, number> };
}

export interface Slide extends Card {
  width: number;
  height: number;
  mpp: number | null;
  mpp_source: string | null;
  objective: number | null;
  /** Deep-zoom pyramid: square tiles of this side, level 0 is 1 × 1 pixel, level `max_level` the slide itself. */
  tile_px: number;
  max_level: number;
  /** Null where the slide's file can be read; else why not, and tiles are drawn from the run's coarse thumbnail. */
  pixels: string | null;
  /** Per model the scores that are drawn: "prediction", "attention", "gradient", "occlusion". */
  scores: Record<string, string[]>;
  tissue: boolean;
  grid: boolean;
  annotations: boolean;
  associated: string[];
  facts: Record<string, string>;
  previous: string | null;
  next: string | null;
}

/** Polygon or MultiPolygon (or Point) in level-0 pixels. */
export type Geometry = { type: string; coordinates: unknown };

export interface Region {
  id: string;
  geometry: Geometry;
  label: string | null;
  note: string;
  status: ReviewStatus;
  /** "drawn" by a person, "suggested" by the engine, "edited" after a suggestion. */
  origin: string;
  /** Of a suggestion: why it was chosen. */
  reason: string;
  who: string | null;
  when: string | null;
}

export interface SlideReview {
  slide_id: string;
  status: ReviewStatus;
  label: string | null;
  who: string | null;
  when: string | null;
  regions: Region[];
  comments: { who: string; when: string; text: string }[];
  /** Newest last. */
  history: { id: string; who: string; when: string; action: string; text: string; undone: boolean }[];
  /** Id of the event that undo would take back for this reviewer, or null. */
  undoable: string | null;
  /** Grows with every event of the slide. */
  version: number;
}

export type Action =
  | { action: "accept" | "reject" | "reopen" }
  | { action: "relabel"; label: string }
  | { action: "comment"; text: string }
  | { action: "region-add"; region: { id: string; geometry: Geometry; label: string | null; note: string } }
  | { action: "region-edit"; region: { id: string; geometry: Geometry } }
  | { action: "region-relabel"; id: string; label: string }
  | { action: "region-accept" | "region-reject" | "region-delete"; id: string }
  | { action: "undo"; event: string };

/** Tiles with their numbers, as typed arrays. */
export interface Tiles {
  span_px: number;
  /** x0, y0, x1, y1 … in level-0 pixels. */
  xy: Int32Array;
  failed: Int32Array;
  /** What the run's files spread the first column's colours over: the same for all slides. Null where not known. */
  display: [number, number] | null;
  columns: { name: string; low: number; high: number; values: Float32Array }[];
}

/** Fired on window when the server no longer knows this browser (401). */
export const SESSION_ENDED = "slidestream:ended";

export class ApiError extends Error {
  constructor(readonly status: number, readonly title: string, readonly detail: string) {
    super(detail || title);
  }
}

export interface WorklistQuery {
  sort?: "urgency" | "uncertainty" | "id" | "review" | "tiles";
  order?: "asc" | "desc";
  model?: string;
  search?: string;
  status?: string;
  review?: string;
  predicted?: string;
  offset?: number;
  limit?: number;
}

export async function session(): Promise<Session> {
  const found: Session = await get("api/session");
  start = found.start;
  return found;
}
export const worklist = (query: WorklistQuery): Promise<Worklist> => get(`api/slides${search(query)}`);
export const slide = (id: string): Promise<Slide> => get(`api/slides/${encodeURIComponent(id)}`);
export const review = (id: string): Promise<SlideReview> => get(`api/slides/${encodeURIComponent(id)}/review`);
export const tissue = (id: string): Promise<GeoJSON> => get(`api/slides/${encodeURIComponent(id)}/tissue`);
export const annotations = (id: string): Promise<GeoJSON> => get(`api/slides/${encodeURIComponent(id)}/annotations`);
export const queue = (): Promise<{ items: { slide_id: string; region: Region }[] }> => get("api/queue");

export interface GeoJSON {
  type: "FeatureCollection";
  features: { type: "Feature"; id?: string; geometry: Geometry; properties: { classification?: { name: string }; name?: string } }[];
}

// In the addresses of pictures, which a browser keeps: another viewer on this port may have other slides of these ids.
let start = "";

export const tileUrl = (id: string, level: number, x: number, y: number): string =>
  `api/slides/${encodeURIComponent(id)}/tiles/${level}/${x}_${y}.jpg?start=${start}`;
export const thumbnailUrl = (id: string, width: number): string =>
  `api/slides/${encodeURIComponent(id)}/thumbnail.jpg?width=${width}&start=${start}`;
/** A square of the slide at full resolution, `side` level-0 pixels wide. */
export const patchUrl = (id: string, x: number, y: number, side: number, px: number): string =>
  `api/slides/${encodeURIComponent(id)}/patch.jpg?x=${x}&y=${y}&side=${side}&px=${px}&start=${start}`;

/** What one reviewer does to one slide; `event` makes a repeated request harmless. */
export async function act(id: string, who: string, action: Action, event: string = crypto.randomUUID()): Promise<SlideReview> {
  const answer = await fetch(`api/slides/${encodeURIComponent(id)}/review`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ event, who, ...action }),
  });
  return checked(answer).then((good) => good.json());
}

/** Scores of a model's heatmap, or with model null the grid (column "tissue", fraction of tissue in each tile). */
export async function tiles(id: string, model: string | null, score = "prediction"): Promise<Tiles> {
  const place = model === null ? "grid" : `scores/${encodeURIComponent(model)}?score=${score}`;
  const answer = await checked(await fetch(`api/slides/${encodeURIComponent(id)}/${place}`));
  const bytes = await answer.arrayBuffer();
  // uint32 length of the header (padded to 4 bytes), header (JSON), int32 xy, int32 failed, float32 columns
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  let at = 4 + length;
  const take = (count: number) => ((at += 4 * count), at - 4 * count);
  const xy = new Int32Array(bytes, take(2 * head.n), 2 * head.n);
  const failed = new Int32Array(bytes, take(2 * head.failed), 2 * head.failed);
  const columns = head.columns.map((column: { name: string; low: number; high: number }) => ({
    ...column,
    values: new Float32Array(bytes, take(head.n), head.n),
  }));
  return { span_px: head.span_px, xy, failed, display: head.display ?? null, columns };
}

async function get<T>(url: string): Promise<T> {
  return (await checked(await fetch(url))).json();
}

async function checked(answer: Response): Promise<Response> {
  if (answer.ok) return answer;
  if (answer.status === 401) window.dispatchEvent(new Event(SESSION_ENDED));
  const said = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, said.title ?? answer.statusText, said.detail ?? "");
}

function search(query: object): string {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}
