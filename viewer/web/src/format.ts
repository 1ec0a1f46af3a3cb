// Numbers as people read them.

import type { Said } from "./api";

const WHOLE = new Intl.NumberFormat("en");

/** 12345 → "12,345". */
export function count(value: number): string {
  return WHOLE.format(value);
}

/** "1 slide", "12,345 slides". */
export function counted(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** A number in [0, 1] with two digits, and never a certainty it does not have: 0.999 → "> 0.99". */
export function share(value: number): string {
  if (value > 0.995 && value < 1) return "> 0.99";
  if (value > 0 && value < 0.005) return "< 0.01";
  return value.toFixed(2);
}

/** What the model gave as its value, with the spread of its networks: "0.93 ± 0.04". */
export function saidValue(said: Said): string {
  if (said.value === null) return "";
  const bounded = said.kind === "probability" || said.kind === "softmax";
  const value = bounded ? share(said.value) : said.value.toPrecision(3);
  if (said.spread === null) return value;
  return `${value} ± ${bounded ? said.spread.toFixed(2) : said.spread.toPrecision(2)}`;
}

/** What kind of number it is; an output that nothing calibrated is never called a probability. */
export function saidKind(said: Said): string {
  if (said.kind === "softmax") return "softmax, not calibrated";
  return said.kind;
}

/** "2026-11-22T23:05:00Z" → the reader's own short form. */
export function moment(when: string): string {
  const date = new Date(when);
  return Number.isNaN(date.valueOf()) ? when : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
