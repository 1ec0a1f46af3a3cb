// Light, dark, or as the computer is set.

import { h } from "../dom";
import { icon, type IconName } from "./icons";

const KEY = "slidestream.theme";
const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const ICONS: Record<Theme, IconName> = { auto: "screen", light: "sun", dark: "moon" };

/** Fired on window when the colours change, for what is drawn in a canvas. */
export const THEME_CHANGED = "slidestream:theme";

function chosen(): Theme {
  const kept = localStorage.getItem(KEY);
  return THEMES.find((theme) => theme === kept) ?? "auto";
}

/** Before anything is drawn. */
export function applyTheme(theme: Theme = chosen()): void {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
}

export function themeButton(): HTMLButtonElement {
  const button = h("button", { class: "quiet icon", type: "button" });
  const draw = () => {
    const words = `Colours: ${chosen() === "auto" ? "as the computer is set" : chosen()}`;
    button.replaceChildren(icon(ICONS[chosen()]));
    button.setAttribute("aria-label", words);
    button.title = words;
  };
  button.addEventListener("click", () => {
    localStorage.setItem(KEY, THEMES[(THEMES.indexOf(chosen()) + 1) % THEMES.length]!);
    applyTheme();
    draw();
    window.dispatchEvent(new Event(THEME_CHANGED));
  });
  draw();
  return button;
}
