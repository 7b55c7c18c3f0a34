'use strict';

// ---- Nodes ----

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    // Pages of a server allow no style in attributes, only through the object model.
    if (name === 'style') node.style.cssText = value;
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function scrolled(table, label) {
  return el('div', { class: 'scroll', role: 'region', tabindex: 0, 'aria-label': label }, table);
}

function chooser(kind, entries, chosen) {
  const select = el('select', { class: kind }, ...entries.map(([value, text]) => el('option', { value }, text)));
  select.value = chosen;
  return select;
}

function soft(...words) {
  return el('span', { class: 'soft' }, ...words);
}

// ---- Values ----

/** Control characters other than tab and newline as their visible pictures. */
function visible(text) {
  return text.replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

/** Four significant digits, but never fewer than the whole part has. */
function rounded(value) {
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size < 1e-3 || size >= 1e7) return value.toExponential(3);
  return size >= 1000 ? value.toFixed(0) : value.toPrecision(4);
}

function tickLabel(value, step, largest) {
  if (value === 0) return '0';
  if (largest < 1e-3) return Number(value.toPrecision(3)).toExponential();
  const [unit, suffix] = largest >= 1e6 ? [1e6, 'M'] : largest >= 1e4 ? [1e3, 'k'] : [1, ''];
  const decimals = Math.max(0, Math.ceil(-Math.log10(step / unit) - 1e-9));
  return (value / unit).toFixed(decimals) + suffix;
}

/** How many entries of the ascending list are at most `limit`. */
function countAtMost(ascending, limit) {
  let low = 0, high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] <= limit) low = middle + 1; else high = middle;
  }
  return low;
}

function union(lists) {
  return [...new Set(lists.flat())];
}

/** A button that does something. */
function button(text, act, attributes = {}) {
  const node = el('button', { type: 'button', ...attributes }, text);
  node.addEventListener('click', act);
  return node;
}

/** A box that is ticked or not. */
function tick(id, text, on, act) {
  const box = el('input', { type: 'checkbox', id, checked: on ? '' : undefined });
  box.addEventListener('change', () => act(box.checked));
  return el('label', { class: 'controls' }, box, text);
}

/** Gives a text to the reader as a file. */
function download(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  const link = el('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Values as a line of CSV. A text that a spreadsheet would compute gets a sign in front of it. */
function csvLine(values) {
  const cell = (value) => {
    const bare = value === null || value === undefined || Number.isNaN(value) ? '' : String(value);
    const text = typeof value === 'string' && /^[=+\-@\t\r]/.test(bare) ? `'${bare}` : bare;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${values.map(cell).join(',')}\n`;
}
