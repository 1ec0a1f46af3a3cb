import { defineConfig } from "vite";

// Built into the Python package, from which `wsi view` serves it; nothing is loaded from elsewhere.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../static",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page's security policy allows no data: scripts or fonts
    modulePreload: { polyfill: false },
    target: "es2022",
    license: { fileName: "licenses.txt" }, // of the libraries that are bundled, with their text
  },
});
