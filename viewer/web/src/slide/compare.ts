// Two views that move as one.

import type { Pane } from "./viewer";

/** Lets each view follow the other. The one that was touched last leads, so that they never pull at each other. */
export function synchronise(left: Pane, right: Pane): () => void {
  let leader = left;
  const stop = new AbortController();
  for (const pane of [left, right]) {
    for (const kind of ["pointerdown", "wheel", "pointerenter"]) {
      pane.stage.addEventListener(kind, () => (leader = pane), { signal: stop.signal, capture: true, passive: true });
    }
  }
  const follow = (from: Pane, to: Pane) => () => {
    if (from !== leader || !to.viewer.world.getItemCount()) return;
    const { viewport } = to.viewer;
    viewport.zoomTo(from.viewer.viewport.getZoom(true), undefined, true);
    viewport.panTo(from.viewer.viewport.getCenter(true), true);
    viewport.setRotation(from.viewer.viewport.getRotation(true), true);
  };
  const [rightward, leftward] = [follow(left, right), follow(right, left)];
  left.viewer.addHandler("viewport-change", rightward);
  right.viewer.addHandler("viewport-change", leftward);
  left.viewer.addHandler("resize", rightward);
  rightward();
  return () => {
    stop.abort();
    left.viewer.removeHandler("viewport-change", rightward);
    left.viewer.removeHandler("resize", rightward);
    right.viewer.removeHandler("viewport-change", leftward);
  };
}
