// Who reviews: a name given at start (--reviewer), or asked for before the first review and kept in this browser.

import type { Session } from "../api";
import { h } from "../dom";
import { openDialog } from "./dialog";

const KEY = "slidestream.reviewer";
export const NAME_LIMIT = 80;

/** Fired on window when the name changes. */
export const REVIEWER_CHANGED = "slidestream:reviewer";

/** The name as it is known, without asking. */
export function knownReviewer(session: Session): string | null {
  return session.reviewer ?? localStorage.getItem(KEY);
}

/** The reviewer's name; asks when none is known. Null when the question was closed without an answer. */
export async function askReviewer(session: Session): Promise<string | null> {
  return knownReviewer(session) ?? changeReviewer(session);
}

/** Ask for a (new) name. A name given to the server stays. */
export function changeReviewer(session: Session): Promise<string | null> {
  if (session.reviewer !== null) return Promise.resolve(session.reviewer);
  return new Promise((resolve) => {
    let answer: string | null = localStorage.getItem(KEY);
    const input = h("input", {
      id: "reviewer-name", name: "name", autocomplete: "name", required: true, maxlength: NAME_LIMIT, value: answer ?? "",
    });
    const form = h(
      "form",
      { id: "reviewer-form", class: "stack" },
      h("p", { class: "small muted" }, "It is written beside every decision, with the time. There are no accounts: anyone who opens this page can give any name."),
      h("div", { class: "field" }, h("label", { for: "reviewer-name" }, "Name or initials"), input),
    );
    const save = h("button", { class: "primary", form: "reviewer-form", type: "submit" }, "Use this name");
    const dialog = openDialog("Who is reviewing?", [form], [save], () => resolve(answer));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const name = input.value.trim();
      if (!name) {
        input.value = "";
        input.reportValidity();
        return;
      }
      answer = name;
      localStorage.setItem(KEY, name);
      window.dispatchEvent(new Event(REVIEWER_CHANGED));
      dialog.close();
    });
    input.focus();
    input.select();
  });
}
