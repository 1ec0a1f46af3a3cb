// Colours of classes: the same as in the GeoJSON for QuPath (Okabe and Ito), so that a region looks alike everywhere.

export type Rgb = readonly [number, number, number];

const COLOURS: readonly Rgb[] = [
  [0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [240, 228, 66],
];
const UNLABELLED: Rgb = [110, 110, 110];

/** RGB of a class; grey where a region has none. */
export function colourOf(label: string | null, classes: readonly string[]): Rgb {
  if (label === null) return UNLABELLED;
  const known = classes.indexOf(label);
  return COLOURS[(known >= 0 ? known : classes.length + crc32(label)) % COLOURS.length]!;
}

export const css = ([red, green, blue]: Rgb, alpha = 1): string => `rgb(${red} ${green} ${blue} / ${alpha})`;

function crc32(text: string): number {
  let rest = 0xffffffff;
  for (const byte of new TextEncoder().encode(text)) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  }
  return (rest ^ 0xffffffff) >>> 0;
}
