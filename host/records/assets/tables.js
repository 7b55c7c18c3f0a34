'use strict';

// ---- Runs ----

/** Run names without the folders that all of them share. */
let shortNames = [];

function nameRuns(runs) {
  const paths = runs.map((run) => run.name.split('/'));
  let shared = 0;
  while (paths.length && paths.every((p) => shared < p.length - 1 && p[shared] === paths[0][shared])) shared += 1;
  shortNames = paths.map((path) => path.slice(shared).join('/'));
}

function runColour(index) {
  return `var(--run-${index % 7})`;
}

function runStroke(index) {
  const dash = ['none', '6 3', '2 3'][Math.floor(index / 7) % 3];
  return `stroke: ${runColour(index)}; stroke-dasharray: ${dash}`;
}

function runMark(index) {
  return svg('svg', { class: 'mark', viewBox: '0 0 20 8', 'aria-hidden': 'true' },
    svg('line', { x1: 0, x2: 20, y1: 4, y2: 4, style: runStroke(index) }));
}

/** A number with its unit, as a headline shows it. */
function counted(value) {
  if (!Number.isFinite(value)) return '–';
  const [unit, suffix] = value >= 1e9 ? [1e9, 'B'] : value >= 1e6 ? [1e6, 'M'] : value >= 1e4 ? [1e3, 'k'] : [1, ''];
  return suffix ? Number((value / unit).toPrecision(3)) + suffix : String(Math.round(value));
}

function lasted(hours) {
  if (!Number.isFinite(hours)) return '–';
  const seconds = hours * 3600;
  if (seconds < 120) return `${seconds.toPrecision(2)} s`;
  return hours < 2 ? `${Math.round(hours * 60)} min` : `${hours.toPrecision(3)} h`;
}

/** What is first asked of a run, a row each; the best value of a column among runs on the same text is bold. */
function headlines(runs) {
  const value = (digits) => (number) => (Number.isFinite(number) ? number.toFixed(digits) : '–');
  const columns = [
    ['best nats', (h) => h.best_nelbo, value(4), true], ['best perplexity', (h) => h.best_ppl, value(2), true],
    ['best loss', (h) => h.best_loss, value(4), true], ['parameters', (h) => h.parameters, counted],
    ['tokens/s', (h) => h.tokens_per_s, counted], ['time', (h) => h.hours, lasted], ['step', (h) => h.step, String],
  ].filter(([, of]) => runs.some((run) => Number.isFinite(of(run.headline))));
  const several = new Set(runs.map(textKey)).size > 1;
  const head = el('tr', {}, el('th', { scope: 'col' }, 'run'), el('th', { scope: 'col' }, 'state'),
    ...columns.map(([name]) => el('th', { scope: 'col', class: 'number' }, name)),
    el('th', { scope: 'col' }, several ? 'text and tokenizer: differ' : 'text and tokenizer'));
  const body = runs.map((run, i) => el('tr', {}, el('th', { scope: 'row' }, runMark(i), ' ', run.name), el('td', {}, run.state),
    ...columns.map(([, of, text, least]) => {
      const own = of(run.headline);
      const alike = runs.filter((other) => textKey(other) === textKey(run)).map((other) => of(other.headline)).filter(Number.isFinite);
      const best = least && alike.length > 1 && own === Math.min(...alike);
      return el('td', { class: best ? 'number differs' : 'number', title: own ?? undefined }, text(own));
    }), el('td', { class: several ? 'differs' : undefined }, textName(run))));
  return scrolled(el('table', { id: 'headlines', class: 'pinned' }, el('thead', {}, head), el('tbody', {}, ...body)), 'Runs');
}

/** A table of settings, a column for each run. */
function settingsTable(runs, keys, id) {
  const head = el('tr', {}, el('td', {}), ...runs.map((run, i) => el('th', { scope: 'col' }, runMark(i), ' ', shortNames[i])));
  const body = keys.map((key) => {
    const values = runs.map((run) => run.settings[key] ?? '–');
    const differs = new Set(values).size > 1 ? 'differs' : undefined;
    return el('tr', {}, el('th', { scope: 'row' }, key), ...values.map((v) => el('td', { class: differs }, v)));
  });
  return scrolled(el('table', { id, class: 'settings pinned' }, el('thead', {}, head), el('tbody', {}, ...body)), 'Settings');
}

function runsSection(runs) {
  if (!runs.length) return null;
  const keys = union(runs.map((run) => Object.keys(run.settings))).sort();
  const differing = keys.filter((key) => !key.startsWith('run.') && new Set(runs.map((run) => run.settings[key] ?? '–')).size > 1);
  const said = runs.length < 2 ? [] : differing.length
    ? [el('h3', { class: 'above' }, 'Settings that differ'), settingsTable(runs, differing, 'differing')]
    : [el('p', { class: 'soft above' }, 'All settings are alike.')];
  const all = el('details', { id: 'all-settings' }, el('summary', {}, `All ${keys.length} settings`), settingsTable(runs, keys, 'settings'));
  return [headlines(runs), el('p', { class: 'soft' }, 'Bold: the best of the runs on the same text. Time is that of the training steps.'), ...said, all];
}

// ---- Results ----

function numberCell(value, text = rounded) {
  return Number.isFinite(value) ? el('td', { class: 'number', title: value }, text(value)) : el('td', { class: 'number' });
}

function resultColumns(results) {
  const plain = (name) => ({ name, value: (r) => r[name], cell: (r) => el('td', {}, r[name] ?? '') });
  const metric = (name) => ({ name, numeric: true, value: (r) => r.metrics[name], cell: (r) => numberCell(r.metrics[name]) });
  const run = { name: 'run', value: (r) => r.run, cell: (r, row) => el('th', { scope: 'row' }, expander(r, row), r.run) };
  const step = { name: 'step', numeric: true, value: (r) => r.step, cell: (r) => numberCell(r.step, String) };
  return [run, plain('set'), plain('measure'), plain('method'), step,
    ...union(results.map((r) => Object.keys(r.metrics))).map(metric)];
}

/** A button that opens and closes a row below with all there is about the result. */
function expander(result, row) {
  const button = el('button', { type: 'button', class: 'expand', 'aria-expanded': 'false',
    'aria-label': `Details of ${result.run}, ${result.set ?? ''}` }, '▸');
  const details = el('tr', { class: 'details' });
  button.addEventListener('click', () => {
    const open = !details.isConnected;
    if (open) row.after(details); else details.remove();
    if (open && !details.firstChild) details.append(el('td', { colspan: row.cells.length }, allOf(result)));
    button.textContent = open ? '▾' : '▸';
    button.setAttribute('aria-expanded', open);
  });
  return button;
}

function allOf(result) {
  const entries = Object.entries({ time: result.time, ...result.details, ...result.metrics });
  return el('dl', {}, ...entries.filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, visible(String(value)))]));
}

/** Ascending for `direction` 1, descending for -1; what is missing comes last either way. */
function byColumn(column, direction) {
  const missing = (value) => value === null || value === undefined || value === '';
  return ({ result: one }, { result: other }) => {
    const [a, b] = [column.value(one), column.value(other)];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return direction * (column.numeric ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true }));
  };
}

function resultsSection(results) {
  if (!results.length) return null;
  const columns = resultColumns(results);
  // A body for each result keeps its details below it when the table is sorted.
  const bodies = results.map((result) => {
    const row = el('tr');
    row.append(...columns.map((column) => column.cell(result, row)));
    return { result, body: el('tbody', {}, row) };
  });
  const heads = columns.map(({ name, numeric }) => el('th',
    { scope: 'col', 'aria-sort': 'none', class: numeric ? 'number' : undefined }, el('button', { type: 'button' }, name)));
  const table = el('table', { id: 'results', class: 'pinned' }, el('thead', {}, el('tr', {}, ...heads)));
  const place = (order) => table.append(...order.map(({ body }) => body));
  heads.forEach((head, i) => head.addEventListener('click', () => {
    const ascending = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach((other) => other.setAttribute('aria-sort', 'none'));
    head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    place([...bodies].sort(byColumn(columns[i], ascending ? 1 : -1)));
  }));
  place(bodies);
  return [scrolled(table, 'Results')];
}

// ---- Published figures ----

function oursCell(ours, published) {
  const lines = ours.map(({ run, value, error }) => {
    const parts = [el('span', { title: value }, rounded(value))];
    if (Number.isFinite(error)) parts.push(el('span', { class: 'soft', title: error }, ` ± ${Number(error.toPrecision(2))}`));
    if (Number.isFinite(published) && published !== 0) {
      const change = (value / published - 1) * 100;
      parts.push(` (${change < 0 ? '' : '+'}${change.toFixed(1)} %)`);
    }
    return el('div', { class: 'ours' }, ...parts, el('div', { class: 'soft' }, run));
  });
  return el('td', { class: 'number' }, ...lines);
}

function publishedTable({ title, source, metric, methods, rows }) {
  const compared = new Set(rows.flatMap((row) => row.ours.map((entry) => entry.method)));
  const all = union([methods, [...compared]]);
  const rowspan = compared.size ? 2 : 1;
  const names = el('tr', {}, el('th', { scope: 'col', rowspan }, 'set'), ...all.map((method) => el('th', compared.has(method)
    ? { scope: 'colgroup', colspan: 2, class: 'group' } : { scope: 'col', rowspan, class: 'group number' }, method)));
  const parts = el('tr', {}, ...all.filter((method) => compared.has(method)).flatMap(() => [
    el('th', { scope: 'col', class: 'group number' }, 'published'), el('th', { scope: 'col', class: 'number' }, 'ours')]));
  const body = rows.map((row) => el('tr', {}, el('th', { scope: 'row' }, row.set), ...all.flatMap((method) => {
    const value = row.values[method];
    const published = el('td', { class: 'group number' }, Number.isFinite(value) ? String(value) : '–');
    const ours = row.ours.filter((entry) => entry.method === method && Number.isFinite(entry.value));
    return compared.has(method) ? [published, oursCell(ours, value)] : [published];
  })));
  const head = el('thead', {}, names, ...(compared.size ? [parts] : []));
  const table = el('table', { class: 'published' }, head, el('tbody', {}, ...body));
  return el('div', { class: 'card' }, el('h3', {}, `${title} (${metric})`), soft(source), scrolled(table, title));
}

function publishedSection(published) {
  const tables = published.filter((entry) => entry.rows.length);
  if (!tables.length) return null;
  return [el('p', { class: 'soft note' }, 'In brackets: our number against the published one of the same method.'),
    ...tables.map(publishedTable)];
}

