// Lengths, magnifications and scores as text.

/** Magnification by the usual convention: 10× is 1 µm for each pixel. */
export function magnification(mpp: number, zoom: number): number {
  return (10 * zoom) / mpp;
}

/** Screen pixels for each level-0 pixel at which a magnification is seen. */
export function zoomFor(magnified: number, mpp: number): number {
  return (magnified * mpp) / 10;
}

export function lengthText(um: number): string {
  if (um >= 1000) return `${trim(um / 1000)} mm`;
  if (um >= 1) return `${trim(um)} µm`;
  return `${trim(um * 1000)} nm`;
}

/** The largest 1, 2 or 5 × 10ⁿ that is not above `most`. */
export function niceLength(most: number): number {
  const ten = 10 ** Math.floor(Math.log10(most));
  return ([5, 2, 1].find((factor) => factor * ten <= most) ?? 1) * ten;
}

/** A score with the digits that its range asks for. */
export function scoreText(value: number, low: number, high: number): string {
  if (Number.isNaN(value)) return "no number";
  const range = Math.abs(high - low) || Math.abs(value) || 1;
  if (range < 1e-4 || range >= 1e6) return value.toPrecision(3);
  return value.toFixed(Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(range)))));
}

export function magnificationText(value: number): string {
  return `${value >= 10 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)}×`;
}

export function trim(value: number): string {
  return String(Number(value.toPrecision(3)));
}

export const count = (value: number): string => value.toLocaleString("en-GB");
