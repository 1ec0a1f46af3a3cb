import { h } from "../dom";
import type { Mounted, SlideContext } from "../slide/context";

/** The review of a slide: its class, its regions, comments and history; and the drawing on the slide. */
export function mountReview(context: SlideContext): Mounted {
  context.panel.append(h("p", {}, "review"));
  return { destroy: () => context.panel.replaceChildren() };
}
