// The question for a class that no model knows.

import { h } from "../dom";
import { openDialog } from "../shell/dialog";

const LABEL_LIMIT = 100;

/** A class, typed; null when the question was closed. */
export function askLabel(): Promise<string | null> {
  return new Promise((resolve) => {
    let answer: string | null = null;
    const input = h("input", { id: "other-label", required: true, maxlength: LABEL_LIMIT, autocomplete: "off" });
    const form = h("form", { id: "label-form", class: "field" }, h("label", { for: "other-label" }, "What is it?"), input);
    const save = h("button", { class: "primary", form: "label-form", type: "submit" }, "Use this class");
    const dialog = openDialog("Another class", [form], [save], () => resolve(answer));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = input.value.trim() || null;
      if (answer !== null) dialog.close();
    });
    input.focus();
  });
}
