import { h } from "../dom";
import type { OpenPage } from "../page";

export const openSlide: OpenPage = (root, route) => {
  root.append(h("h1", {}, "slide"), h("p", {}, route.path.join("/")));
  return { destroy: () => root.replaceChildren() };
};
