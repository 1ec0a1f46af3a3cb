// Annotorious' OpenSeadragon build brings a WebGL renderer along that compiles code from text (`new Function`), which the
// page's security policy forbids. Only the resting regions are drawn with it: this gives them our canvas stage instead.
// The build ends where the package no longer looks as expected, so that an update cannot bring the renderer back unseen.

import type { Plugin } from "vite";

const BUNDLE = "annotorious-openseadragon.es.js";
// `, V2 = (r, t) => {  const e = new fs(), i = Vm({  width: t.width,` – the only function that makes a renderer for a canvas
const STAGE = /, (\w+) = \((\w+), (\w+)\) => \{\s*const \w+ = new \w+\(\), \w+ = \w+\(\{\s*width: \3\.width,\s*height: \3\.height,\s*backgroundAlpha: 0,/g;
// `dt.add(mi);` at the start of a line – the renderer's parts register themselves, which would keep all of it in the build
const REGISTERED = /^(\w+)\.add\(\w+\);$/gm;

export function annotorious(): Plugin {
  return {
    name: "annotorious-without-webgl",
    config: () => ({ optimizeDeps: { exclude: ["@annotorious/openseadragon"] } }),
    transform(code, id) {
      if (!id.split("?")[0]!.endsWith(BUNDLE)) return null;
      const found = [...code.matchAll(STAGE)];
      if (found.length !== 1) {
        throw new Error(`${BUNDLE} has ${found.length} stages, not one; fit STAGE in vite-annotorious.ts to this version`);
      }
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
  };
}
