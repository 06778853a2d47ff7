// Writing into the page. Every string becomes a text node: nothing here, or anywhere in the
// console, makes markup of a string.

export const at = (id) => document.getElementById(id);

/** An element with attributes (`class`, `data-…`) and children; strings become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Set a text only where it differs, so that nobody's selection is lost and nothing is read out
    twice. */
export function say(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

export function show(node, visible) {
  node.hidden = !visible;
}

/** A list of terms: [[name, value], …]; a value is a string or a node. */
export function figures(list, pairs) {
  children(list, pairs, ([name]) => name, ([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);
}

/** The rows of a table. `draw(item)` gives the cells' contents; the columns' names go along for
    narrow screens. */
export function rows(table, items, key, draw) {
  const heads = [...table.tHead.rows[0].cells];
  children(table.tBodies[0], items, key, (item) => {
    const { cells, active } = draw(item);
    const row = el("tr", active ? { class: "active" } : {});
    cells.forEach((content, place) => {
      const actions = Array.isArray(content);
      const classes = actions ? "actions" : heads[place].classList.contains("number") ? "number" : undefined;
      const cell = el("td", { class: classes, "data-label": heads[place].textContent });
      cell.append(...(actions ? content : [content ?? ""]));
      row.append(cell);
    });
    return [row];
  });
  show(table, items.length > 0);
}

const drawn = new WeakMap();

/** Make `parent`'s children those of `items`. What did not change since the last time stays as it
    is; where a changed part held the focus, the same control in its successor gets it, or else the
    headline. */
export function children(parent, items, key, draw) {
  const before = drawn.get(parent) ?? new Map();
  const after = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.act : undefined;
  const holder = focused && [...before].find(([, part]) => part.nodes.some((n) => n.contains(document.activeElement)));
  for (const item of items) {
    const name = String(key(item));
    const mark = JSON.stringify(item, (_, value) => (value instanceof Node ? value.textContent : value));
    const old = before.get(name);
    after.set(name, old && old.mark === mark ? old : { mark, nodes: draw(item) });
  }
  const wanted = [...after.values()].flatMap((part) => part.nodes);
  const same = wanted.length === parent.childNodes.length && wanted.every((n, i) => n === parent.childNodes[i]);
  if (!same) parent.replaceChildren(...wanted);
  drawn.set(parent, after);
  if (holder && !parent.contains(document.activeElement)) {
    const part = after.get(holder[0]);
    const successor = part?.nodes.map((n) => n.querySelector(`[data-act="${focused}"]`)).find(Boolean);
    (successor ?? at("headline")).focus();
  }
}

/** Forget what was drawn into `parent`, and empty it. */
export function clear(parent) {
  drawn.delete(parent);
  parent.replaceChildren();
}
