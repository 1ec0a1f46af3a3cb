// The controls of what is shown over the slide.

import type { Slide } from "../api";
import { h } from "../dom";
import { MAPS } from "./colormap";
import { marksOf, type MarkName, type Marks } from "./marks";
import { choicesOf, extremes, type Choice, type Range, type ScoreLayer } from "./scores";
import { count, scoreText, trim } from "./units";

const STEPS = 500;
const MARK_NAMES: Record<MarkName, string> = {
  tissue: "Tissue outline",
  grid: "Tile grid",
  failed: "Failed tiles",
  annotations: "Annotations",
};
const SCORE_NAMES: Record<string, string> = {
  prediction: "Prediction",
  attention: "Attention",
  gradient: "Gradient",
  occlusion: "Occlusion",
  grid: "Share of tissue",
};

/** Controls of one view's heatmap. `title` tells two of them apart. */
export function scoreControls(slide: Slide, scores: ScoreLayer, title: string): HTMLElement {
  const choices = choicesOf(slide);
  if (!choices.length) return section(title, h("p", { class: "muted small" }, "There are no scores of this slide."));
  const on = checkbox("Show", scores.on, (checked) => ((scores.on = checked), scores.changed()));
  on.input.dataset.testid = "scores-on";
  const problem = h("p", { class: "notice error", role: "alert", hidden: true });
  const numbers = h(
    "div",
    { class: "stack" },
    opacity("Opacity", scores.opacity, (value) => ((scores.opacity = value), scores.changed())),
    mapChooser(scores),
    range(scores),
    threshold(slide, scores),
  );
  scores.onChange(() => {
    on.input.checked = scores.on;
    problem.hidden = scores.problem === null;
    problem.textContent = `These scores cannot be shown: ${scores.problem}`;
    numbers.hidden = scores.problem !== null;
  });
  const controls = section(title, chooser(choices, scores), problem, numbers);
  controls.firstElementChild!.append(on.label);
  return controls;
}

/** Toggles of tissue, grid, failed tiles and annotations; `changed` draws again. */
export function markControls(
  slide: Slide,
  marks: Marks,
  changed: () => void,
): { element: HTMLElement; refresh(): void } {
  const legend = h("ul", { class: "slide-classes" });
  const boxes = marksOf(slide).map((name) => {
    const toggle = marks.toggles[name];
    const box = checkbox(MARK_NAMES[name], toggle.on, (checked) => ((toggle.on = checked), changed()));
    box.input.dataset.testid = `layer-${name}`;
    const strength = slider(
      `Opacity of ${MARK_NAMES[name].toLowerCase()}`,
      0,
      1,
      toggle.opacity,
      (value) => ((toggle.opacity = value), changed()),
    );
    return { toggle, box, row: h("div", { class: "slide-mark" }, box.label, strength) };
  });
  const refresh = () => {
    for (const { toggle, box } of boxes) box.input.checked = toggle.on;
    legend.replaceChildren(
      ...[...marks.classes].map(([name, colour]) => {
        const dot = h("span", { class: "dot", "aria-hidden": "true" });
        dot.style.color = colour;
        return h("li", {}, dot, name);
      }),
    );
  };
  refresh();
  const rows = boxes.length
    ? boxes.map(({ row }) => row)
    : [h("p", { class: "muted small" }, "Nothing else is known of this slide.")];
  return { element: section("Also shown", ...rows, legend), refresh };
}

function chooser(choices: Choice[], scores: ScoreLayer): HTMLElement {
  const models = [...new Set(choices.map((choice) => choice.model))];
  const model = h(
    "select",
    { "data-testid": "model" },
    ...models.map((name, i) => h("option", { value: i }, name ?? "No model (tile grid)")),
  );
  const score = h("select", { "data-testid": "score" });
  const column = h("select", { "data-testid": "column" });
  const scoreField = field("Score", score);
  const columnField = field("Number", column);
  const of = () => choices.filter((choice) => choice.model === models[Number(model.value)]);
  model.addEventListener("change", () => void scores.choose(of()[0]!));
  score.addEventListener("change", () => void scores.choose(of()[Number(score.value)]!));
  column.addEventListener("change", () => void scores.choose({ ...scores.choice!, column: Number(column.value) }));
  scores.onChange(() => {
    const chosen = scores.choice;
    if (!chosen) return;
    model.value = String(models.indexOf(chosen.model));
    score.replaceChildren(
      ...of().map((choice, i) => h("option", { value: i }, SCORE_NAMES[choice.score] ?? choice.score)),
    );
    score.value = String(of().findIndex((choice) => choice.score === chosen.score));
    const columns = scores.loaded?.tiles.columns ?? [];
    column.replaceChildren(...columns.map(({ name }, i) => h("option", { value: i }, name)));
    column.value = String(chosen.column);
    columnField.hidden = columns.length < 2;
    scoreField.hidden = of().length < 2;
  });
  return h("div", { class: "stack" }, field("Model", model), scoreField, columnField);
}

function mapChooser(scores: ScoreLayer): HTMLElement {
  const named = Object.entries(MAPS).filter(([, { name }]) => name);
  const map = h(
    "select",
    { "data-testid": "map" },
    ...named.map(([key, { name }]) => h("option", { value: key, selected: key === scores.map }, name)),
  );
  map.addEventListener("change", () => ((scores.map = map.value), scores.repaint()));
  return field("Colours", map);
}

function range(scores: ScoreLayer): HTMLElement {
  const text = h("output", { class: "number" });
  const low = slider("Lowest score of the colours", 0, STEPS, 0, (value) => set(value, Number(high.value)));
  const high = slider("Highest score of the colours", 0, STEPS, STEPS, (value) => set(Number(low.value), value));
  const set = (from: number, to: number) => {
    const [first, last] = limits(scores);
    const at = (step: number) => first + (Math.min(STEPS, Math.max(0, step)) / STEPS) * (last - first);
    [scores.low, scores.high] = [at(Math.min(from, to - 1)), at(Math.max(to, from + 1))];
    scores.repaint();
  };
  const preset = (label: string, which: Range, title: string) =>
    h("button", { type: "button", class: "small", title, onclick: () => scores.useRange(which) }, label);
  const cohort = preset("Cohort", "cohort", "Where the cohort's tiles lie, as in the run's files: the same for all slides");
  scores.onChange(() => {
    cohort.hidden = scores.cohort === null;
    const [first, last] = limits(scores);
    const step = (value: number) => String(last > first ? Math.round(((value - first) / (last - first)) * STEPS) : 0);
    [low.value, high.value] = [step(scores.low), step(scores.high)];
    const label = (value: number) => scoreText(value, scores.low, scores.high);
    text.textContent = `${label(scores.low)} to ${label(scores.high)}`;
    low.setAttribute("aria-valuetext", label(scores.low));
    high.setAttribute("aria-valuetext", label(scores.high));
  });
  return h(
    "div",
    { class: "field", role: "group", "aria-label": "Range of the colours" },
    h("div", { class: "spread" }, h("span", {}, "Range of the colours"), text),
    low,
    high,
    h(
      "div",
      { class: "row" },
      cohort,
      preset("As defined", "definition", "The limits the score was defined with: comparable between slides"),
      preset("This slide", "slide", "From the smallest to the largest score of this slide"),
    ),
  );
}

function threshold(slide: Slide, scores: ScoreLayer): HTMLElement {
  const text = h("output", { class: "number" });
  const shown = h("p", { class: "muted small", "data-testid": "shown" });
  const input = slider("Hide tiles with a score below", 0, STEPS, 0, (value) => {
    const [first, last] = limits(scores);
    scores.threshold = value === 0 ? -Infinity : first + (value / STEPS) * (last - first);
    scores.repaint();
  });
  input.dataset.testid = "threshold";
  scores.onChange(() => {
    const [first, last] = limits(scores);
    const all = scores.threshold === -Infinity;
    if (all) input.value = "0";
    else input.value = String(Math.round(((scores.threshold - first) / (last - first)) * STEPS));
    text.textContent = all ? "none hidden" : scoreText(scores.threshold, scores.low, scores.high);
    input.setAttribute("aria-valuetext", text.textContent);
    shown.textContent = shownText(slide, scores);
  });
  return h("div", { class: "field" }, h("div", { class: "spread" }, h("span", {}, "Hide below"), text), input, shown);
}

function shownText(slide: Slide, scores: ScoreLayer): string {
  const total = scores.column?.values.length ?? 0;
  if (!total || !scores.loaded) return scores.busy ? "Loading …" : "";
  const shown = scores.shown();
  const { field: tiles } = scores.loaded;
  const each = Math.min(tiles.cellX, tiles.span) * Math.min(tiles.cellY, tiles.span); // overlap is not counted twice
  const area = slide.mpp ? `, about ${trim((shown * each * slide.mpp ** 2) / 1e6)} mm²` : "";
  return `${count(shown)} of ${count(total)} tiles shown${area}`;
}

/** What occurs and what the score is defined for, together. */
function limits(scores: ScoreLayer): [number, number] {
  const column = scores.column;
  if (!column) return [0, 1];
  const [low, high] = extremes(column.values);
  return [Math.min(low, column.low), Math.max(high, column.high)];
}

function section(title: string, ...children: Node[]): HTMLElement {
  return h(
    "section",
    { class: "slide-section stack", "aria-label": title },
    h("div", { class: "spread" }, h("h2", {}, title)),
    ...children,
  );
}

function field(label: string, control: HTMLSelectElement): HTMLElement {
  control.id = `control-${crypto.randomUUID()}`;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control);
}

function checkbox(
  label: string,
  checked: boolean,
  changed: (checked: boolean) => void,
): { label: HTMLElement; input: HTMLInputElement } {
  const input = h("input", { type: "checkbox", checked });
  input.addEventListener("change", () => changed(input.checked));
  return { label: h("label", { class: "check" }, input, label), input };
}

function opacity(label: string, value: number, changed: (value: number) => void): HTMLElement {
  const text = h("output", { class: "number" }, `${Math.round(100 * value)} %`);
  const input = slider(label, 0, 1, value, (now) => ((text.textContent = `${Math.round(100 * now)} %`), changed(now)));
  input.dataset.testid = "opacity";
  return h("div", { class: "field" }, h("div", { class: "spread" }, h("span", {}, label), text), input);
}

function slider(
  label: string,
  low: number,
  high: number,
  value: number,
  changed: (value: number) => void,
): HTMLInputElement {
  const input = h("input", {
    type: "range",
    min: low,
    max: high,
    step: high > 1 ? 1 : 0.05,
    value,
    "aria-label": label,
  });
  input.addEventListener("input", () => changed(Number(input.value)));
  return input;
}
