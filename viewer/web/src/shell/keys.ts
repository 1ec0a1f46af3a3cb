// The keyboard: pages say which keys they answer to, and "?" shows them all.

import { h } from "../dom";
import { openDialog } from "./dialog";

export interface Binding {
  /** As KeyboardEvent.key: "j", "Enter", "ArrowDown", "["; with "Ctrl+" before it for Control or Command. */
  keys: string[];
  /** What it does, as the help says it: "Next slide". */
  what: string;
  /** May return false: the key was not for it, and the browser does as usual. */
  run(event: KeyboardEvent): unknown;
}

interface Group {
  title: string;
  bindings: Binding[];
}

const groups: Group[] = [];

/** Answer to keys until the returned function is called. Keys typed into fields and dialogs are left alone. */
export function bindKeys(title: string, bindings: Binding[]): () => void {
  const group = { title, bindings };
  groups.push(group);
  return () => void groups.splice(groups.indexOf(group), 1);
}

/** Once, when the page starts. */
export function listenToKeys(): void {
  bindKeys("Everywhere", [{ keys: ["?"], what: "This help", run: showHelp }]);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const pressed = (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + event.key;
    for (const group of [...groups].reverse())
      for (const binding of group.bindings)
        if (binding.keys.includes(pressed) && binding.run(event) !== false) {
          event.preventDefault();
          return;
        }
  });
}

/** Whether a key belongs to a field: letters typed there are text. */
export function isTyping(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !["checkbox", "radio", "button", "submit"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement || target.isContentEditable;
}

const SIGNS: Record<string, string> = { ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", " ": "Space" };

export function showHelp(): void {
  const parts = groups.map((group) =>
    h(
      "section",
      { class: "keys" },
      h("h3", {}, group.title),
      h("dl", { class: "facts" }, ...group.bindings.flatMap(({ keys, what }) => [h("dt", {}, ...keySigns(keys)), h("dd", {}, what)])),
    ),
  );
  openDialog("Keys", [h("div", { class: "stack" }, ...parts.reverse())]);
}

/** Each key as it is printed on a keyboard; a long row of them as its ends. */
function keySigns(keys: string[]): Node[] {
  const shown = keys.length > 4 ? [keys[0]!, keys.at(-1)!] : keys;
  const signs: Node[] = shown.map((key) => h("kbd", {}, SIGNS[key] ?? key.replace(/^Ctrl\+(.)$/, (_, letter: string) => `Ctrl ${letter.toUpperCase()}`)));
  if (shown !== keys) signs.splice(1, 0, document.createTextNode("–"));
  return signs;
}
