// Pictures on buttons: strokes on a 24 × 24 field, in the colour of the text beside them.

const PATHS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.3 15.3 20 20",
  help: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9.3 9.2a2.8 2.8 0 1 1 3.9 2.9c-.8.4-1.2 1-1.2 1.9M12 17h.01",
  user: "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8M4.5 20.5c.6-3.7 3.6-5.5 7.5-5.5s6.9 1.8 7.5 5.5",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2.500v2M12 19.500v2M2.5 12h2M19.5 12h2M5.3 5.300l1.4 1.400M17.3 17.300l1.4 1.400M5.3 18.700l1.4-1.400M17.3 6.700l1.4-1.4",
  moon: "M20 14.500A8.2 8.2 0 0 1 9.5 4 8.2 8.2 0 1 0 20 14.5",
  screen: "M3.5 5h17v11h-17zM8.5 20h7M12 16v4",
  close: "M6 6l12 12M18 6 6 18",
  check: "M5 12.500l4.7 4.700L19.5 7.2",
  tag: "M4 4h7.500l8.5 8.5-7.5 7.500L4 11.500zM8 8h.01",
  warning: "M12 4 2.8 20h18.400zM12 10v4.500M12 17.300h.01",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 11v5.500M12 7.600h.01",
  left: "M14.5 5.5 8 12l6.5 6.5",
  right: "M9.5 5.5 16 12l-6.5 6.5",
  up: "M5.5 14.5 12 8l6.5 6.5",
  down: "M5.5 9.5 12 16l6.5-6.5",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  home: "M4 11.5 12 4.500l8 7M6.5 9.500V20h11V9.500M10 20v-5.500h4V20",
  fullscreen: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  rotate: "M19.5 12a7.5 7.5 0 1 1-2.3-5.400M19.5 3.500v4.300h-4.3",
  layers: "M12 3.5 3 8.500l9 5 9-5zM3.5 12.8 12 17.500l8.5-4.700M3.5 16.5 12 21l8.5-4.5",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.700l-1 1M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.700l1-1",
  undo: "M8 5 4 9l4 4M4.5 9H14a5.5 5.5 0 0 1 0 11h-4",
  polygon: "M6 18.5 4 9l9-5 7.5 6.5-4.5 9z",
  rectangle: "M4 6h16v12H4z",
  pencil: "M4 20l1-4.500L16 4.500l3.5 3.500L8.5 19zM13.5 7l3.5 3.5",
  trash: "M4.5 7h15M9 7V4h6v3M6.5 7l1 13h9l1-13M10 11v5.500M14 11v5.5",
  comment: "M4 5h16v11H10.500L6 20v-4H4z",
  download: "M12 4v11M7.5 11 12 15.5 16.5 11M4.5 20h15",
  eye: "M2.5 12c2.4-4.3 5.6-6.5 9.5-6.500s7.1 2.2 9.5 6.500c-2.4 4.3-5.6 6.5-9.5 6.500S4.9 16.3 2.5 12M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  panel: "M3.5 5h17v14h-17zM15 5v14",
  place: "M12 21c-4.5-4.7-6.5-8.1-6.5-11a6.5 6.5 0 0 1 13 0c0 2.9-2 6.3-6.5 11M12 7.800a2.3 2.3 0 1 0 0 4.6 2.3 2.3 0 0 0 0-4.6",
  refresh: "M4.5 12a7.5 7.5 0 0 1 13-5.100l2 2.100M19.5 4.500V9H15M19.5 12a7.5 7.5 0 0 1-13 5.100l-2-2.100M4.5 19.500V15H9",
  list: "M8.5 6H20M8.5 12H20M8.5 18H20M4 6h.01M4 12h.01M4 18h.01",
  queue: "M4 5h16v5H4zM4 14h10M4 19h10M17 14l3.5 2.500L17 19z",
  slide: "M3.5 7h17v10h-17zM8 7v10M14.5 9.700a2.3 2.3 0 1 0 0 4.6 2.3 2.3 0 0 0 0-4.6",
} as const;

export type IconName = keyof typeof PATHS;

/** An icon that screen readers skip; the button around it carries the words (aria-label or text). */
export function icon(name: IconName, size = "1.15em"): SVGSVGElement {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const given = {
    viewBox: "0 0 24 24", width: size, height: size, fill: "none", stroke: "currentColor",
    "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true",
  };
  for (const [key, value] of Object.entries(given)) picture.setAttribute(key, value);
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  picture.append(path);
  return picture;
}
