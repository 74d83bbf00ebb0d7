// Helpers to change the page as little as possible. Text reaches the page only as text, never as markup.

import { printable } from './figures.js';

export const byId = (id) => document.getElementById(id);

/** Creates an element with a class and text. */
export function element(name, className = '', text = '') {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== '') setText(made, text);
  return made;
}

/** Sets the text of an element if it differs, so that a selection in it survives. */
export function setText(target, text) {
  const safe = printable(text);
  if (target.textContent !== safe) target.textContent = safe;
}

export function setAttribute(target, name, value) {
  const text = printable(value);
  if (target.getAttribute(name) !== text) target.setAttribute(name, text);
}

export function setClass(target, className) {
  if (target.className !== className) target.className = className;
}

export function setHidden(target, hidden) {
  if (target.hidden !== hidden) target.hidden = hidden;
}

export const shownOf = (shown, all) => (shown.length < all.length ? `${shown.length} of ${all.length}` : all.length);

/**
 * Makes the children of `parent` show `items` in their order. Children are found by `key(item)` and stay the same elements,
 * so that focus is kept.
 */
export function reconcile(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
  for (const child of known.values()) child.remove();
}
