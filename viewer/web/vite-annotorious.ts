// Annotorious' OpenSeadragon build brings a WebGL renderer along that compiles code from text (`new Function`), which the
// page's security policy forbids. Only the resting regions are drawn with it: this gives them our canvas stage instead.
// The build ends where the package no longer looks as expected, so that an update cannot bring the renderer back unseen.

import type { Plugin } from "vite";

const BUNDLE = "annotorious-openseadragon.es.js";
const LICENCES = "licenses.txt";
// `, V2 = (r, t) => {  const e = new fs(), i = Vm({  width: t.width,` – the only function that makes a renderer for a canvas
const STAGE = /, (\w+) = \((\w+), (\w+)\) => \{\s*const \w+ = new \w+\(\), \w+ = \w+\(\{\s*width: \3\.width,\s*height: \3\.height,\s*backgroundAlpha: 0,/g;
// `dt.add(mi);` at the start of a line – the renderer's parts register themselves, which would keep all of it in the build
const REGISTERED = /^(\w+)\.add\(\w+\);$/gm;
const LICENCE_FILES = ["LICENSE", "LICENSE.md", "license", "LICENSE-MIT.txt"];

type Read = (path: string) => Promise<string | null>;

export function annotorious(): Plugin {
  let bundled = ""; // where the package's build lies
  return {
    name: "annotorious-without-webgl",
    enforce: "post",
    config: () => ({ optimizeDeps: { exclude: ["@annotorious/openseadragon"] } }),
    transform(code, id) {
      if (!id.split("?")[0]!.endsWith(BUNDLE)) return null;
      const found = [...code.matchAll(STAGE)];
      if (found.length !== 1) {
        throw new Error(`${BUNDLE} has ${found.length} stages, not one; fit STAGE in vite-annotorious.ts to this version`);
      }
      bundled = id.split("?")[0]!;
      const [whole, name] = found[0]!;
      const ours = whole.replace(`, ${name} =`, `, ${name} = createRegionStage, unusedStage =`);
      const rest = code.replace(whole, ours).replace(REGISTERED, "");
      return { code: `import { createStage as createRegionStage } from "/src/review/stage.ts";\n${rest}`, map: null };
    },
    generateBundle(_options, bundle) {
      for (const file of Object.values(bundle)) {
        if (file.type !== "chunk" || !/\bnew Function\(|[^.\w]eval\(/.test(file.code)) continue;
        this.error(`${file.fileName} makes code from text, which the page's security policy forbids`);
      }
    },
    async writeBundle({ dir = "" }) {
      const read: Read = (path) => this.fs.readFile(path, { encoding: "utf8" }).catch(() => null);
      const known = await read(`${dir}/${LICENCES}`);
      if (!bundled || known === null) this.error(`${LICENCES} is not there to add the licences within ${BUNDLE} to`);
      await this.fs.writeFile(`${dir}/${LICENCES}`, `${known}\n${await licencesWithin(bundled, read)}`);
    },
  };
}

/** Licences of the packages that Annotorious has built into its own file, of which the bundler sees nothing. */
async function licencesWithin(bundle: string, read: Read): Promise<string> {
  const packages = bundle.slice(0, bundle.indexOf("/node_modules/") + "/node_modules/".length);
  const { sources } = JSON.parse((await read(`${bundle}.map`)) ?? '{"sources":[]}') as { sources: string[] };
  const named = sources.flatMap((source) => source.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1] ?? []);
  const parts = [...new Set(named)].sort().map(async (name) => {
    const facts = await read(`${packages}${name}/package.json`);
    if (facts === null) return `## ${name} (part of @annotorious/openseadragon; see its repository for the licence)\n`;
    const { version, license } = JSON.parse(facts) as { version: string; license: string };
    const texts = await Promise.all(LICENCE_FILES.map((file) => read(`${packages}${name}/${file}`)));
    return `## ${name} - ${version} (${license}), part of @annotorious/openseadragon\n\n${texts.find((text) => text !== null) ?? ""}`;
  });
  return (await Promise.all(parts)).join("\n");
}
