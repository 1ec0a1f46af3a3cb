import { h } from "../dom";
import type { OpenPage } from "../page";

export const openQueue: OpenPage = (root, route) => {
  root.append(h("h1", {}, "queue"), h("p", {}, route.path.join("/")));
  return { destroy: () => root.replaceChildren() };
};
