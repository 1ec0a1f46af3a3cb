// What the models said of the slide, what is known of its file, and what to be careful about.

import type { Said, Slide } from "../api";
import { h } from "../dom";
import { count, trim } from "./units";

const KINDS: Record<string, string> = {
  probability: "calibrated probability",
  softmax: "softmax, not calibrated: not a probability",
};

export function summary(slide: Slide): HTMLElement {
  return h(
    "div",
    { class: "stack", "data-testid": "summary" },
    slide.problem && h("p", { class: "notice error", role: "alert" }, slide.problem),
    ...Object.entries(slide.said).map(([model, said]) => prediction(model, said)),
    !Object.keys(slide.said).length && !slide.problem && h("p", { class: "muted" }, emptyText(slide)),
    facts(slide),
  );
}

function emptyText(slide: Slide): string {
  if (slide.status === "empty") return "No tissue was found on this slide, so nothing was predicted.";
  if (slide.status === "waiting") return "This slide has not been processed yet.";
  return "No model has been applied to this slide.";
}

function prediction(model: string, said: Said): HTMLElement {
  const outputs = Object.entries(said.outputs).sort((a, b) => b[1] - a[1]);
  const shares = said.kind === "probability" || said.kind === "softmax";
  return h(
    "section",
    { class: "panel slide-said", "aria-label": `Prediction of ${model}` },
    h(
      "div",
      { class: "panel-head" },
      h("h2", {}, model),
      said.abstains && h("span", { class: "badge warn" }, "abstains"),
    ),
    h(
      "div",
      { class: "panel-body stack" },
      h(
        "div",
        { class: "slide-said-first" },
        h("strong", {}, said.predicted ?? (said.value === null ? "no prediction" : trim(said.value))),
        said.value !== null && said.predicted !== null && h("span", { class: "number" }, valueText(said)),
      ),
      h("p", { class: "muted small" }, KINDS[said.kind] ?? said.kind),
      outputs.length > 1 &&
        shares &&
        h("div", { class: "slide-outputs" }, ...outputs.flatMap(([name, value]) => outputRow(name, value))),
      outputs.length > 1 &&
        !shares &&
        h(
          "dl",
          { class: "facts" },
          ...outputs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { class: "number" }, trim(value))]),
        ),
      said.set.length > 0 &&
        h("p", { class: "small" }, h("span", { class: "muted" }, "Conformal set: "), said.set.join(", ")),
      said.flags.length > 0 &&
        h("p", { class: "row" }, ...said.flags.map((flag) => h("span", { class: "badge warn" }, flag))),
    ),
  );
}

function valueText(said: Said): string {
  const spread = said.spread === null ? "" : ` ± ${said.spread.toFixed(2)}`;
  return `${said.value!.toFixed(2)}${spread}`;
}

function outputRow(name: string, value: number): HTMLElement[] {
  const fill = h("span");
  fill.style.width = `${(100 * Math.min(1, Math.max(0, value))).toFixed(1)}%`;
  return [
    h("span", { class: "ellipsis" }, name),
    h("span", { class: "bar", "aria-hidden": "true" }, fill),
    h("span", { class: "number" }, value.toFixed(2)),
  ];
}

function facts(slide: Slide): HTMLElement {
  const counted: [string, string][] = [
    ...(slide.tiles === null ? [] : [["Tiles", count(slide.tiles)] as [string, string]]),
    ...(slide.failed_tiles ? [["Failed tiles", count(slide.failed_tiles)] as [string, string]] : []),
  ];
  const given = Object.entries(slide.facts);
  const known = given.length ? given : measured(slide); // the server says more where it could read the file
  return h(
    "section",
    { "aria-label": "Facts of the slide" },
    slide.flags.length > 0 &&
      h("p", { class: "row" }, ...slide.flags.map((flag) => h("span", { class: "badge warn" }, flag))),
    h(
      "dl",
      { class: "facts" },
      ...[...known, ...counted].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
  );
}

function measured(slide: Slide): [string, string][] {
  return [
    ["Size", `${count(slide.width)} × ${count(slide.height)} px`],
    [
      "Pixel size",
      slide.mpp ? `${trim(slide.mpp)} µm${slide.mpp_source ? ` (${slide.mpp_source})` : ""}` : "not known",
    ],
  ];
}

/** The first model's answer in a few words, for the bar; null where there is none. */
export function shortly(slide: Slide): HTMLElement | null {
  const [first] = Object.entries(slide.said);
  if (!first) return null;
  const [model, said] = first;
  const text = [said.predicted, said.value === null ? null : valueText(said)].filter((part) => part !== null).join(" ");
  const about = `${model}: ${KINDS[said.kind] ?? said.kind}`;
  return h(
    "span",
    { class: `badge ${said.abstains ? "warn" : "accent"}`, title: about },
    said.abstains ? `${text}, abstains` : text,
  );
}
