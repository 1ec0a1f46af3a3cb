// What the worklist shows, as it stands in the address: a reload or "back" finds it again.

import type { Session, WorklistQuery } from "../api";

export type Sort = NonNullable<WorklistQuery["sort"]>;

export interface View {
  sort: Sort;
  order: "asc" | "desc";
  model: string;
  search: string;
  status: string;
  review: string;
  predicted: string;
  /** Index of the chosen row. */
  row: number;
}

export const FILTERS = ["search", "status", "review", "predicted"] as const;

/** The order that a reader expects first: the largest number on top, names from a to z. */
export const FIRST_ORDER: Record<Sort, "asc" | "desc"> = {
  urgency: "desc", uncertainty: "desc", id: "asc", review: "asc", tiles: "desc",
};

export function viewOf(address: URLSearchParams, session: Session): View {
  const asked = address.get("sort");
  const fallback: Sort = session.models.length > 0 ? "urgency" : "id";
  const sort = asked !== null && Object.hasOwn(FIRST_ORDER, asked) ? (asked as Sort) : fallback;
  const order = address.get("order");
  const model = address.get("model") ?? "";
  return {
    sort,
    order: order === "asc" || order === "desc" ? order : FIRST_ORDER[sort],
    model: session.models.includes(model) ? model : (session.models[0] ?? ""),
    search: address.get("search") ?? "",
    status: address.get("status") ?? "",
    review: address.get("review") ?? "",
    predicted: address.get("predicted") ?? "",
    row: Math.max(0, Number.parseInt(address.get("row") ?? "0", 10) || 0),
  };
}

/** The address of a view, without what is as it would be anyway. */
export function addressOf(view: View, session: Session): string {
  const plain = viewOf(new URLSearchParams({ sort: view.sort }), session);
  const first = viewOf(new URLSearchParams(), session);
  const given = new URLSearchParams();
  if (view.sort !== first.sort) given.set("sort", view.sort);
  if (view.order !== plain.order) given.set("order", view.order);
  if (view.model !== plain.model) given.set("model", view.model);
  for (const name of FILTERS) if (view[name]) given.set(name, view[name]);
  if (view.row > 0) given.set("row", String(view.row));
  const text = given.toString();
  return text ? `#/worklist?${text}` : "#/worklist";
}

export function isFiltered(view: View): boolean {
  return FILTERS.some((name) => view[name] !== "");
}

export function queryOf({ row: _row, ...asked }: View): WorklistQuery {
  return asked;
}
