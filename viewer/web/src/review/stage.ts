// Draws the regions that rest on the slide (those being drawn or edited are Annotorious' own SVG).
//
// Annotorious draws them with WebGL, through code that it makes from text. The page's security policy forbids that, and
// not every machine has WebGL: vite-annotorious.ts puts this stage, a plain canvas with the same interface, in its place.

import type { AnnotationState, ImageAnnotation, MultiPolygonGeometry, PolygonGeometry, RectangleGeometry, Selection, Shape } from "@annotorious/openseadragon";
import OpenSeadragon from "openseadragon";

export interface RegionStyle {
  stroke: string;
  fill: string;
  /** In screen pixels. */
  width: number;
  /** Lengths of dashes and gaps in screen pixels; [] for a whole line. */
  dash: number[];
  /** Opacity of the light seam that is seen on dark and on pale tissue. */
  seam: number;
}

type Styled = (id: string, state: { selected: boolean; hovered: boolean }) => RegionStyle;

/** How the regions of a viewer look. Not Annotorious' own styles: those become style attributes, which the policy forbids. */
export const regionStyles = new WeakMap<OpenSeadragon.Viewer, Styled>();
const stages = new WeakMap<OpenSeadragon.Viewer, Stage>();

/** Draw again, because styles changed. */
export const redrawRegions = (viewer: OpenSeadragon.Viewer): void => stages.get(viewer)?.redraw();

type Filter = (annotation: ImageAnnotation) => boolean;

interface Drawn {
  annotation: ImageAnnotation;
  path: Path2D;
}

class Stage {
  private readonly drawn = new Map<string, Drawn>();
  private readonly context: CanvasRenderingContext2D | null;
  private filter: Filter | undefined;
  private hovered: string | undefined;
  private selected = new Map<string, boolean>();
  private waiting = 0;

  constructor(private readonly viewer: OpenSeadragon.Viewer, private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d");
    this.resize(canvas.width, canvas.height);
    stages.set(viewer, this);
  }

  addAnnotation = (annotation: ImageAnnotation, _state?: AnnotationState): void => {
    this.drawn.set(annotation.id, { annotation, path: pathOf(annotation.target.selector) });
  };

  removeAnnotation = (annotation: ImageAnnotation): void => void this.drawn.delete(annotation.id);

  updateAnnotation = (before: ImageAnnotation, after: ImageAnnotation): void => {
    this.removeAnnotation(before);
    this.addAnnotation(after);
  };

  /** Size in CSS pixels. */
  resize = (width: number, height: number): void => {
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    this.paint();
  };

  setFilter = (filter?: Filter): void => this.change(() => (this.filter = filter));
  setHovered = (id?: string): void => this.change(() => (this.hovered = id));
  setStyle = (): void => this.redraw();
  setVisible = (visible: boolean): void => void this.canvas.classList.toggle("hidden", !visible);
  setSelected = ({ selected }: Selection): void =>
    this.change(() => (this.selected = new Map(selected.map(({ id, editable }) => [id, editable === true]))));

  getScale = (): number => {
    const { viewport, world } = this.viewer;
    return (viewport.getZoom(true) * viewport.getContainerSize().x) / world.getContentFactor();
  };

  /** At once, so that regions move with the slide and not a frame later. */
  redraw = (): void => this.paint();

  destroy = (): void => {
    cancelAnimationFrame(this.waiting);
    stages.delete(this.viewer);
  };

  private change(apply: () => void): void {
    apply();
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(this.paint);
  }

  private readonly paint = (): void => {
    const { context, canvas, viewer } = this;
    if (!context || !viewer.viewport || viewer.world.getItemCount() === 0) return;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const [place, seen] = [this.place(), viewer.viewport.getBounds(true).times(viewer.world.getContentFactor()).getBoundingBox()];
    const scale = Math.hypot(place.a, place.b);
    const styled = regionStyles.get(viewer);
    if (!styled || scale === 0) return;
    context.setTransform(place);
    for (const { annotation, path } of this.drawn.values()) {
      const { id, target } = annotation;
      const { minX, minY, maxX, maxY } = target.selector.geometry.bounds;
      if (this.selected.get(id) || (this.filter && !this.filter(annotation))) continue; // edited: Annotorious shows it
      if (maxX < seen.x || maxY < seen.y || minX > seen.x + seen.width || minY > seen.y + seen.height) continue;
      const style = styled(id, { selected: this.selected.has(id), hovered: id === this.hovered });
      stroke(context, path, style, devicePixelRatio / scale);
    }
  };

  /** From level-0 pixels to pixels of the canvas, also where the slide is turned. */
  private place(): DOMMatrix {
    const { viewport, world } = this.viewer;
    const across = world.getContentFactor();
    const at = (x: number, y: number) => viewport.pixelFromPoint(new OpenSeadragon.Point(x, y), true).times(devicePixelRatio);
    const [origin, right, down] = [at(0, 0), at(1, 0), at(0, 1)];
    return new DOMMatrix([
      (right.x - origin.x) / across, (right.y - origin.y) / across,
      (down.x - origin.x) / across, (down.y - origin.y) / across,
      origin.x, origin.y,
    ]);
  }
}

/** Called by Annotorious in place of its own. */
export const createStage = (viewer: OpenSeadragon.Viewer, canvas: HTMLCanvasElement): Stage => new Stage(viewer, canvas);

function stroke(context: CanvasRenderingContext2D, path: Path2D, style: RegionStyle, pixel: number): void {
  context.fillStyle = style.fill;
  context.fill(path, "evenodd");
  context.lineJoin = "round";
  context.setLineDash([]);
  context.strokeStyle = `rgb(255 255 255 / ${style.seam})`;
  context.lineWidth = (style.width + 2) * pixel;
  context.stroke(path);
  context.setLineDash(style.dash.map((length) => length * pixel));
  context.strokeStyle = style.stroke;
  context.lineWidth = style.width * pixel;
  context.stroke(path);
}

function pathOf(shape: Shape): Path2D {
  const path = new Path2D();
  const ring = (points: number[][]) => {
    points.forEach(([x = 0, y = 0], at) => (at ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  };
  if (shape.type === "RECTANGLE") {
    const { x, y, w, h } = shape.geometry as RectangleGeometry;
    path.rect(x, y, w, h);
  } else if (shape.type === "POLYGON") ring((shape.geometry as PolygonGeometry).points);
  else if (shape.type === "MULTIPOLYGON")
    for (const { rings } of (shape.geometry as MultiPolygonGeometry).polygons) for (const { points } of rings) ring(points);
  return path;
}
