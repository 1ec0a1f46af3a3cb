// Colours that mean numbers. The engine's own map is computed as heatmaps/colour.py does, so that files and the
// viewer show one colour for one score.

/** Those without a name are one colour, for layers that show no numbers. */
export const MAPS: Record<string, { name: string; anchors: string[] }> = {
  engine: {
    name: "Blue to red",
    anchors: ["#2338a4", "#2f6fc4", "#79b4e2", "#f4efd9", "#f7a85c", "#dd4f2b", "#a80f2b"],
  },
  viridis: {
    name: "Viridis",
    anchors: [
      "#440154",
      "#482878",
      "#3e4989",
      "#31688e",
      "#26828e",
      "#1f9e89",
      "#35b779",
      "#6ece58",
      "#b5de2b",
      "#fde725",
    ],
  },
  fire: {
    name: "Fire",
    anchors: [
      "#000004",
      "#1b0c41",
      "#4a0c6b",
      "#781c6d",
      "#a52c60",
      "#cf4446",
      "#ed6925",
      "#fb9b06",
      "#f7d13d",
      "#fcffa4",
    ],
  },
  grey: { name: "Grey", anchors: ["#101010", "#f2f2f2"] },
  grid: { name: "", anchors: ["#1e3a8a", "#1e3a8a"] },
  failed: { name: "", anchors: ["#969696", "#969696"] },
};

export const STEPS = 256;
const tables = new Map<string, Uint8Array>();

/** RGB of every step, lowest first: 3 × STEPS bytes. An unknown name gives the engine's own map. */
export function colourTable(name: string): Uint8Array {
  const known = tables.get(name);
  if (known) return known;
  const lab = (MAPS[name] ?? MAPS.engine!).anchors.map(hexToRgb).map(rgbToOklab);
  const table = new Uint8Array(3 * STEPS);
  for (let step = 0; step < STEPS; step++) {
    const at = (step / (STEPS - 1)) * (lab.length - 1);
    const left = Math.min(Math.floor(at), lab.length - 2);
    const share = at - left;
    const mixed = lab[left]!.map((value, axis) => value * (1 - share) + lab[left + 1]![axis]! * share);
    table.set(oklabToRgb(mixed), 3 * step);
  }
  tables.set(name, table);
  return table;
}

/** The step of a score in [0, STEPS); scores outside the range get the nearer end. */
export function stepOf(score: number, low: number, high: number): number {
  const place = high > low ? (score - low) / (high - low) : score >= high ? 1 : 0;
  return Math.round(Math.min(1, Math.max(0, place)) * (STEPS - 1));
}

export function cssColour(name: string, step: number): string {
  const table = colourTable(name);
  return `rgb(${table[3 * step]}, ${table[3 * step + 1]}, ${table[3 * step + 2]})`;
}

/** The map as a horizontal bar, filling `canvas`; hidden scores (below `threshold`) are left empty. */
export function drawBar(canvas: HTMLCanvasElement, name: string, hidden: number): void {
  canvas.width = STEPS;
  canvas.height = 1;
  const context = canvas.getContext("2d")!;
  const table = colourTable(name);
  const pixels = context.createImageData(STEPS, 1);
  for (let step = 0; step < STEPS; step++) {
    pixels.data.set([...table.subarray(3 * step, 3 * step + 3), step < hidden ? 0 : 255], 4 * step);
  }
  context.putImageData(pixels, 0, 0);
}

function hexToRgb(text: string): number[] {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

function rgbToOklab(rgb: number[]): number[] {
  const [r, g, b] = rgb.map((byte) => {
    const value = byte / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  }) as [number, number, number];
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function oklabToRgb(lab: number[]): number[] {
  const [lightness, a, b] = lab as [number, number, number];
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((raw) => {
    const value = Math.min(1, Math.max(0, raw));
    return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
  });
}
