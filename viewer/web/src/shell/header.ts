// The line above every page: what is looked at, where one is, and who is looking.

import type { Session } from "../api";
import { h } from "../dom";
import type { Route } from "../page";
import { icon } from "./icons";
import { showHelp } from "./keys";
import { changeReviewer, knownReviewer, REVIEWER_CHANGED } from "./reviewer";
import { themeButton } from "./theme";

export interface Frame {
  elements: HTMLElement[];
  /** Mark the tab of the page that is shown now. */
  moved(route: Route): void;
}

export function header(session: Session): Frame {
  document.title = session.title;
  const name = session.title.replace(/ · slidestream$/, ""); // the brand stands beside it
  const tabs = navigation(session);
  const bar = h(
    "header",
    { class: "header" },
    h("a", { class: "skip", href: "#page", onclick: skip }, "Skip to the page"),
    h("span", { class: "brand" }, icon("slide", "1.4em"), h("span", {}, "slidestream")),
    h("span", { class: "run-name ellipsis", title: name }, name),
    tabs.element,
    h("span", { class: "grow" }),
    h("span", { class: "badge warn not-diagnostic" }, "Research use – not for diagnosis"),
    session.review && reviewerButton(session),
    themeButton(),
    h("button", { class: "quiet icon", "aria-label": "Keys and help", title: "Keys and help (?)", onclick: () => showHelp() }, icon("help")),
  );
  const elements: HTMLElement[] = [bar];
  if (session.synthetic)
    elements.push(h("p", { class: "synthetic" }, h("strong", {}, "SYNTHETIC"), " These slides are drawn by a program; nothing here is a finding about a person."));
  return { elements, moved: tabs.moved };
}

/** The skip link moves the focus; the address belongs to the pages. */
function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("page")?.focus();
}

function navigation(session: Session): { element: HTMLElement; moved(route: Route): void } {
  if (session.kind === "slide") return { element: h("nav", {}), moved: () => undefined };
  const links: Record<string, HTMLAnchorElement> = { worklist: h("a", { href: "#/worklist" }, icon("list"), "Worklist") };
  if (session.review) links.queue = h("a", { href: "#/queue" }, icon("queue"), "Review queue");
  const moved = (route: Route) => {
    for (const [name, link] of Object.entries(links)) {
      if (name === route.name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    // From another page back to the filters as they were left; on the worklist itself, to all slides.
    links.worklist!.href = route.name === "worklist" ? "#/worklist" : worklistAddress;
  };
  return { element: h("nav", { class: "tabs", "aria-label": "Pages" }, ...Object.values(links)), moved };
}

let worklistAddress = "#/worklist";

/** The worklist's address with its filters, to which its tab goes back. */
export function rememberWorklist(hash: string): void {
  worklistAddress = hash;
}

function reviewerButton(session: Session): HTMLButtonElement {
  const name = h("span", { class: "ellipsis" });
  const button = h("button", { class: "quiet reviewer", onclick: () => void changeReviewer(session) }, icon("user"), name);
  const draw = () => {
    const known = knownReviewer(session);
    name.textContent = known ?? "Your name";
    button.setAttribute("aria-label", known ? `Reviewer: ${known}. Change` : "Give your name as reviewer");
    button.title = session.reviewer !== null ? "Given when the server was started" : "The name written beside your decisions";
    button.disabled = session.reviewer !== null;
  };
  window.addEventListener(REVIEWER_CHANGED, draw);
  draw();
  return button;
}
