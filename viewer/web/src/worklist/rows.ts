// One slide as a row of the worklist.

import { thumbnailUrl, type Card, type Said } from "../api";
import { h } from "../dom";
import { count, counted, moment, saidKind, saidValue, share } from "../format";
import { icon } from "../shell/icons";

export const COLUMNS = 7;

const REVIEW: Record<Card["review"]["status"], { words: string; look: string }> = {
  open: { words: "Open", look: "" },
  accepted: { words: "Accepted", look: "ok" },
  rejected: { words: "Rejected", look: "bad" },
  relabelled: { words: "Relabelled", look: "info" },
};

/** A row; its picture waits in data-src until scrolling has come to rest. */
export function slideRow(card: Card, model: string): HTMLTableRowElement {
  const said = card.said[model];
  const row = h("tr", { "data-id": card.id, "data-status": card.status }, slideCell(card));
  if (card.status === "failed" || card.status === "waiting" || (card.status === "empty" && !said)) row.append(problemCell(card));
  else
    row.append(
      predictionCell(said),
      barCell(said?.urgency ?? null, "No calibrated probability", "warn"),
      barCell(said?.uncertainty ?? null, "No prediction", ""),
      flagsCell(card, said),
      h("td", { class: "number" }, card.tiles === null ? "–" : count(card.tiles)),
    );
  row.append(reviewCell(card));
  return row;
}

/** Stands for a slide whose page of the list is on its way. */
export function waitingRow(): HTMLTableRowElement {
  return h("tr", { class: "waiting" }, h("td", { colspan: COLUMNS }, h("div", { class: "skeleton" })));
}

/** Room above or below the rows that are drawn. */
export function spacer(): HTMLTableRowElement {
  return h("tr", { class: "spacer", "aria-hidden": true }, h("td", { colspan: COLUMNS }));
}

export function slideAddress(id: string): string {
  return `#/slide/${encodeURIComponent(id)}`;
}

function slideCell(card: Card): HTMLTableCellElement {
  const large = devicePixelRatio > 1 || innerWidth > 2200;
  const picture = h("img", { alt: "", decoding: "async", "data-src": thumbnailUrl(card.id, large ? 320 : 160) });
  picture.addEventListener("load", () => picture.classList.add("shown"));
  picture.addEventListener("error", () => picture.replaceWith(icon("slide", "1.6em")));
  return h(
    "th",
    { scope: "row", class: "slide-cell" },
    h(
      "a",
      { href: slideAddress(card.id), tabindex: -1 },
      h("span", { class: "thumbnail" }, picture),
      h("span", { class: "slide-id", title: card.id }, card.id),
    ),
  );
}

function problemCell(card: Card): HTMLTableCellElement {
  const cell = h("td", { colspan: COLUMNS - 2, class: "problem-cell" });
  if (card.status === "failed") {
    const problem = card.problem ?? "No reason was kept.";
    cell.append(h("div", { class: "problem", title: problem }, h("span", { class: "badge bad" }, icon("warning"), "Failed"), ` ${problem}`));
  } else if (card.status === "empty") {
    cell.append(h("div", { class: "problem" }, h("span", { class: "badge warn" }, "No tissue"), ` ${card.problem ?? "No tile was found on this slide."}`));
  } else {
    cell.append(h("div", { class: "problem muted" }, h("span", { class: "badge" }, "Waiting"), " Not worked on yet."));
  }
  return cell;
}

function predictionCell(said: Said | undefined): HTMLTableCellElement {
  if (!said) return h("td", { class: "muted" }, "No prediction");
  const doubt = said.abstains ? h("span", { class: "badge warn", title: "The model does not decide on this slide" }, "Abstains") : null;
  const several = said.set.length > 1 && h("span", { class: "muted", title: "Classes that cannot be ruled out (conformal set)" }, `{${said.set.join(", ")}}`);
  return h(
    "td",
    { class: "prediction-cell" },
    h("div", { class: "ellipsis" }, h("strong", {}, said.predicted ?? "–"), " ", h("span", { class: "number" }, saidValue(said))),
    h("div", { class: "second ellipsis" }, h("span", { class: "muted" }, said.value === null ? "" : saidKind(said)), doubt, several),
  );
}

function barCell(value: number | null, absent: string, high: string): HTMLTableCellElement {
  if (value === null) return h("td", { class: "bar-cell muted", title: absent }, h("span", { "aria-hidden": true }, "–"), h("span", { class: "visually-hidden" }, absent));
  const fill = h("span", {});
  fill.style.width = `${Math.max(0, Math.min(1, value)) * 100}%`;
  return h("td", { class: "bar-cell" }, h("span", { class: "number" }, share(value)), h("span", { class: `bar ${value >= 0.5 ? high : ""}` }, fill));
}

function flagsCell(card: Card, said: Said | undefined): HTMLTableCellElement {
  const flags = [...new Set([...card.flags, ...(said?.flags ?? [])])];
  const badges = flags.map((flag) => h("span", { class: "badge warn ellipsis", title: flag }, flag));
  if (card.failed_tiles > 0)
    badges.unshift(h("span", { class: "badge bad", title: "Tiles that could not be read; they are drawn as no data" }, counted(card.failed_tiles, "failed tile")));
  const all = [...badges].map((badge) => badge.textContent).join(", ");
  const more = badges.length > 2 && h("span", { class: "badge", title: all }, `+${badges.length - 2}`);
  return h("td", { class: "flags-cell" }, h("div", { class: "flags" }, ...badges.slice(0, 2), more));
}

function reviewCell(card: Card): HTMLTableCellElement {
  const { status, label, who, when, comments, regions, suggested } = card.review;
  const { words, look } = REVIEW[status];
  const more = [
    suggested > 0 && counted(suggested, "suggestion"),
    regions > 0 && counted(regions, "region"),
    comments > 0 && counted(comments, "comment"),
  ].filter(Boolean);
  const by = who && h("span", { title: when ? moment(when) : "" }, who);
  const text = more.join(", ");
  return h(
    "td",
    { class: "review-cell" },
    h("div", { class: "ellipsis" }, h("span", { class: `badge ${look}` }, label && status === "relabelled" ? `${words}: ${label}` : words)),
    h("div", { class: "second muted ellipsis" }, by, by && text ? " · " : "", text),
  );
}
