import { h } from "../dom";
import type { OpenPage } from "../page";

export const openWorklist: OpenPage = (root, route) => {
  root.append(h("h1", {}, "worklist"), h("p", {}, route.path.join("/")));
  return { destroy: () => root.replaceChildren() };
};
