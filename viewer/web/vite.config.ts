import { defineConfig } from "vite";
import { annotorious } from "./vite-annotorious.ts";

// Built into the Python package, from which `wsi view` serves it; nothing is loaded from elsewhere.
export default defineConfig({
  base: "./",
  plugins: [annotorious()],
  build: {
    outDir: "../static",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page's security policy allows no data: scripts or fonts
    modulePreload: { polyfill: false },
    target: "es2022",
    chunkSizeWarningLimit: 1_000, // the slide page with OpenSeadragon; it comes from this machine
  },
});
