import * as api from "../api";
import { h } from "../dom";
import type { OpenPage } from "../page";
import { failed, loading } from "../shell/states";
import { placeOf } from "../slide/link";
import { SlidePage } from "../slide/page";
import "../styles/slide.css";

/** One slide: #/slide/ID, with ?x=…&y=…&zoom=… for a place on it. */
export const openSlide: OpenPage = (root, route, session) => {
  const id = route.path[0] ?? "";
  let page: SlidePage | null = null;
  let gone = false;
  const open = async () => {
    root.replaceChildren(h("div", { class: "slide-wait" }, loading(`Opening ${id}`, 3)));
    try {
      const slide = await api.slide(id);
      if (gone) return;
      root.replaceChildren();
      page = new SlidePage(root, slide, session, placeOf(route.query));
    } catch (error) {
      if (!gone) root.replaceChildren(failed(error, () => void open()));
    }
  };
  void open();
  return {
    destroy: () => {
      gone = true;
      page?.destroy();
      root.replaceChildren();
    },
  };
};
