// The panel beside the slide: tabs of layers, review and facts.

import { h } from "../dom";

export interface Tab {
  name: string;
  body: HTMLElement;
}

export class Panel {
  readonly element: HTMLElement;
  private readonly buttons: HTMLButtonElement[];

  constructor(private readonly tabs: Tab[]) {
    this.buttons = tabs.map(({ name, body }, i) => {
      const id = `slide-tab-${name.toLowerCase()}`;
      body.id = `${id}-body`;
      body.classList.add("slide-tab-body");
      for (const [key, value] of [
        ["role", "tabpanel"],
        ["aria-labelledby", id],
      ] as const)
        body.setAttribute(key, value);
      return h(
        "button",
        { type: "button", role: "tab", id, "aria-controls": body.id, onclick: () => this.show(i) },
        name,
      );
    });
    const list = h("div", { class: "tabs", role: "tablist", "aria-label": "Panel" }, ...this.buttons);
    list.addEventListener("keydown", (event) => this.move(event));
    this.element = h(
      "aside",
      { class: "slide-panel", "aria-label": "Layers, review and facts" },
      list,
      ...tabs.map(({ body }) => body),
    );
    this.show(0);
  }

  show(index: number): void {
    this.tabs.forEach(({ body }, i) => {
      body.hidden = i !== index;
      this.buttons[i]!.setAttribute("aria-selected", String(i === index));
      this.buttons[i]!.tabIndex = i === index ? 0 : -1;
    });
  }

  private move(event: KeyboardEvent): void {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next =
      (this.buttons.indexOf(event.target as HTMLButtonElement) + by + this.buttons.length) % this.buttons.length;
    this.show(next);
    this.buttons[next]!.focus();
  }
}
