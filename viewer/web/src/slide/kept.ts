// What a reader has set, kept in this browser.

const KEY = "slidestream.slide";

export interface Kept {
  map: string;
  opacity: number;
  k: number;
  panel: boolean;
}

const DEFAULTS: Kept = { map: "engine", opacity: 0.5, k: 6, panel: true };

export function readKept(): Kept {
  let found: unknown;
  try {
    found = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    found = {}; // another version wrote it: the defaults do
  }
  const kept = { ...DEFAULTS };
  if (typeof found !== "object" || found === null) return kept;
  for (const [name, value] of Object.entries(found))
    if (name in kept && typeof value === typeof kept[name as keyof Kept]) Object.assign(kept, { [name]: value });
  return kept;
}

export function keep(change: Partial<Kept>): void {
  localStorage.setItem(KEY, JSON.stringify({ ...readKept(), ...change }));
}
