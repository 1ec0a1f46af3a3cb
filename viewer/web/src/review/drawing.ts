// Drawing and editing regions on the slide, with Annotorious; what rests is drawn by stage.ts.

import "@annotorious/openseadragon/annotorious-openseadragon.css";
import { createOSDAnnotator, UserSelectAction, type ImageAnnotation, type ImageAnnotatorState, type OpenSeadragonAnnotator, type Shape } from "@annotorious/openseadragon";
import type OpenSeadragon from "openseadragon";
import type { Geometry, Region, Slide } from "../api";
import { colourOf, css } from "./colours";
import { geometryOf, shapeOf } from "./geometry";
import { redrawRegions, regionStyles, type RegionStyle } from "./stage";

export type Tool = "rectangle" | "polygon";

const EDIT_SETTLES_MS = 600;

interface Hears {
  drawn(id: string, geometry: Geometry): void;
  edited(id: string, geometry: Geometry): void;
  /** A region was chosen on the slide, or none. */
  selected(id: string | null): void;
  /** The tool in hand, or the region being edited, is another one. */
  changed(): void;
}

export class Drawing {
  tool: Tool | null = null;
  editing: string | null = null;
  private readonly annotator: OpenSeadragonAnnotator;
  private regions = new Map<string, Region>();
  private readonly shapes = new Map<string, { geometry: Geometry; annotation: ImageAnnotation }>();
  private selection: string | null = null;
  private settle = 0;

  constructor(private readonly viewer: OpenSeadragon.Viewer, private readonly slide: Slide, private readonly classes: () => string[], private readonly hears: Hears) {
    regionStyles.set(viewer, this.styleOf);
    this.annotator = createOSDAnnotator(viewer, { userSelectAction: UserSelectAction.SELECT, theme: "light" });
    this.annotator.on("createAnnotation", this.onCreated);
    this.annotator.on("selectionChanged", this.onSelected);
    this.annotator.state.store.observe(({ changes }) => {
      if (this.editing !== null && changes.updated?.some(({ newValue }) => newValue.id === this.editing)) this.editSoon();
    });
    // Annotorious has an undo of its own on the viewer, which would change what is shown and not what is kept
    viewer.element.addEventListener("keydown", stopUndo, true);
  }

  /** What is there now. The region being edited stays as the hand has it, unless it is gone. */
  show(regions: readonly Region[]): void {
    this.regions = new Map(regions.map((region) => [region.id, region]));
    for (const id of this.shapes.keys()) if (!this.regions.has(id)) this.remove(id);
    for (const region of regions) if (region.id !== this.editing) this.place(region);
    redrawRegions(this.viewer);
  }

  /** Take a tool in hand, or with null put it down. */
  use(tool: Tool | null): void {
    this.stopEditing();
    if (this.tool !== null) this.annotator.cancelDrawing();
    this.tool = tool;
    if (tool !== null) {
      this.select(null);
      this.annotator.setDrawingTool(tool);
      this.annotator.setDrawingMode(tool === "rectangle" ? "drag" : "click");
    }
    this.annotator.setDrawingEnabled(tool !== null);
    if (tool === null) this.viewer.setMouseNavEnabled(true);
    this.hears.changed();
  }

  /** Choose a region, or none. */
  select(id: string | null): void {
    if (id !== this.editing) this.stopEditing();
    this.selection = id;
    this.annotator.setSelected(id !== null && this.shapes.has(id) ? id : undefined, false);
    redrawRegions(this.viewer);
  }

  canEdit(id: string): boolean {
    return this.shapes.has(id);
  }

  /** Show handles on the region's outline. */
  edit(id: string): void {
    if (!this.shapes.has(id)) return;
    if (this.tool !== null) this.use(null);
    this.stopEditing();
    this.editing = id;
    this.selection = id;
    this.viewer.element.style.setProperty("--region", css(colourOf(this.regions.get(id)?.label ?? null, this.classes())));
    this.annotator.setSelected(id, true);
    this.hears.changed();
  }

  /** Ends the editing; what was changed is kept. */
  stopEditing(): void {
    const id = this.editing;
    if (id === null) return;
    if (this.settle) this.sendEdit();
    this.editing = null;
    this.annotator.setSelected(this.selection === id ? id : undefined, false);
    const region = this.regions.get(id);
    if (region) this.place(region);
    this.hears.changed();
  }

  /** Whether the click on the slide (level-0 pixels) is for a region or a tool. */
  claims = (x: number, y: number): boolean => {
    if (this.tool !== null || this.editing !== null) return true;
    const { store } = this.annotator.state as ImageAnnotatorState<ImageAnnotation, ImageAnnotation>;
    return store.getAt(x, y) !== undefined;
  };

  setVisible(visible: boolean): void {
    this.annotator.setVisible(visible);
  }

  destroy(): void {
    if (this.settle) this.sendEdit();
    this.viewer.element?.removeEventListener("keydown", stopUndo, true);
    this.annotator.destroy();
    regionStyles.delete(this.viewer);
  }

  private readonly styleOf = (id: string, { selected, hovered }: { selected: boolean; hovered: boolean }): RegionStyle => {
    const region = this.regions.get(id);
    const colour = colourOf(region?.label ?? null, this.classes());
    const faint = region?.status === "rejected";
    const waits = region?.status === "open";
    return {
      stroke: css(colour, faint ? 0.7 : 1),
      fill: css(colour, faint ? 0 : selected ? 0.28 : hovered ? 0.2 : 0.1),
      width: (selected || id === this.selection ? 3.5 : 2) - (faint ? 0.8 : 0),
      dash: waits ? [7, 5] : faint ? [3, 3] : [],
      seam: faint ? 0.25 : 0.75,
    };
  };

  private place(region: Region): void {
    const before = this.shapes.get(region.id);
    if (before && sameGeometry(before.geometry, region.geometry)) return;
    const selector = shapeOf(region.geometry);
    if (!selector) return this.remove(region.id);
    const annotation = annotationOf(region.id, selector);
    this.shapes.set(region.id, { geometry: region.geometry, annotation });
    if (before) this.annotator.updateAnnotation(annotation);
    else this.annotator.addAnnotation(annotation);
  }

  private remove(id: string): void {
    if (this.editing === id) {
      window.clearTimeout(this.settle);
      this.settle = 0;
      this.editing = null;
      this.hears.changed();
    }
    if (this.selection === id) this.select(null);
    if (this.shapes.delete(id)) this.annotator.removeAnnotation(id);
  }

  private readonly onCreated = (annotation: ImageAnnotation): void => {
    const geometry = geometryOf(annotation.target.selector, this.slide.width, this.slide.height);
    // The tool stays in Annotorious' hand until this event is over; then it is put down, and the region is chosen
    window.setTimeout(() => {
      this.use(null);
      if (geometry === null) {
        this.annotator.removeAnnotation(annotation.id);
        return;
      }
      this.shapes.set(annotation.id, { geometry, annotation });
      this.select(annotation.id);
      this.hears.drawn(annotation.id, geometry);
    });
  };

  private readonly onSelected = (chosen: ImageAnnotation[]): void => {
    const id = chosen[0]?.id ?? null;
    if (this.tool !== null || id === this.selection) return;
    if (id !== this.editing) this.stopEditing();
    this.selection = id;
    this.hears.selected(id);
  };

  private editSoon(): void {
    window.clearTimeout(this.settle);
    this.settle = window.setTimeout(() => this.sendEdit(), EDIT_SETTLES_MS);
  }

  private sendEdit(): void {
    window.clearTimeout(this.settle);
    this.settle = 0;
    const id = this.editing;
    const annotation = id === null ? undefined : this.annotator.getAnnotationById(id);
    if (id === null || !annotation) return;
    const geometry = geometryOf(annotation.target.selector, this.slide.width, this.slide.height);
    const before = this.shapes.get(id)?.geometry;
    if (geometry === null || (before && sameGeometry(before, geometry))) return;
    this.shapes.set(id, { geometry, annotation });
    this.hears.edited(id, geometry);
  }
}

function annotationOf(id: string, selector: Shape): ImageAnnotation {
  return { id, bodies: [], target: { annotation: id, selector } };
}

const sameGeometry = (one: Geometry, other: Geometry): boolean => one === other || JSON.stringify(one) === JSON.stringify(other);

function stopUndo(event: KeyboardEvent): void {
  if (!(event.ctrlKey || event.metaKey) || !["z", "y", "Z"].includes(event.key)) return;
  event.stopPropagation();
  event.preventDefault();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, ctrlKey: true }));
}
