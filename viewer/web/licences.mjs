// licenses.txt beside the built pages: the licence of every library that they may hold a part of. Taken from the lock
// file and not from what was bundled: Annotorious comes as one file in which its own libraries can no longer be told apart.

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const RULE = "-".repeat(80);

// In Annotorious' file but not among its dependencies.
const COMPILED_IN = {
  head: "svelte 4 (MIT), compiled into Annotorious",
  licence: "MIT",
  holder: "the Svelte contributors, https://github.com/sveltejs/svelte/graphs/contributors",
  text: "",
};

/** One entry of the lock file as {head, licence, holder, text}; text is "" where the package brings none. */
function library(place, { version, license = "no licence named" }) {
  const folder = join(HERE, place);
  const { author } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((name) => /^(licen[cs]e|copying)/i.test(name));
  return {
    head: `${place.replace(/^.*node_modules\//, "")} ${version} (${license})`,
    licence: license,
    holder: (typeof author === "string" ? author : author?.name) ?? "its authors",
    text: file ? readFileSync(join(folder, file), "utf8").trim() : "",
  };
}

const { packages } = JSON.parse(readFileSync(join(HERE, "package-lock.json"), "utf8"));
const shipped = Object.entries(packages).filter(([place, { dev }]) => place && !dev && !place.includes("/@types/"));

// Libraries with the same text stand together above it.
const groups = new Map();
for (const one of [...shipped.map(([place, entry]) => library(place, entry)), COMPILED_IN]) {
  const key = one.text.replace(/\s+/g, " ") || one.licence;
  groups.set(key, [...(groups.get(key) ?? []), one]);
}
const parts = [...groups.values()].map((group) => {
  const holders = [...new Set(group.map(({ holder }) => `Copyright (c) ${holder}`))].join("\n");
  const { text, licence } = group[0];
  const body = text || `${holders}\n\nUnder the terms of ${licence} as they are printed for other libraries here.`;
  return `${group.map(({ head }) => head).join("\n")}\n\n${body}`;
});
const first = "The pages are made with these libraries; slidestream itself is under the Apache License 2.0.";
writeFileSync(join(HERE, "..", "static", "licenses.txt"), `${[first, ...parts].join(`\n\n${RULE}\n\n`)}\n`);
