'use strict';

// ---- Nodes ----

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
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

// ---- Runs ----

const data = JSON.parse(document.getElementById('data').textContent);

/** Run names without the folders that all of them share. */
const shortNames = (() => {
  const paths = data.runs.map((run) => run.name.split('/'));
  let shared = 0;
  while (paths.length && paths.every((p) => shared < p.length - 1 && p[shared] === paths[0][shared])) shared += 1;
  return paths.map((path) => path.slice(shared).join('/'));
})();

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

function runsSection(runs) {
  if (!runs.length) return null;
  const head = el('tr', {}, el('td', { class: 'soft' }, runs.length > 1 ? 'bold: differs' : ''),
    ...runs.map((run, i) => el('th', { scope: 'col' }, runMark(i), ' ', run.name)));
  const line = (name, values) => {
    const differs = new Set(values).size > 1 ? 'differs' : undefined;
    return el('tr', {}, el('th', { scope: 'row' }, name), ...values.map((v) => el('td', { class: differs }, v)));
  };
  const facts = union(runs.map((run) => Object.keys(run.facts)));
  const body = el('tbody', {}, line('state', runs.map((run) => run.state)),
    ...facts.map((fact) => line(fact, runs.map((run) => run.facts[fact] ?? '–'))));
  return [scrolled(el('table', { class: 'pinned' }, el('thead', {}, head), body), 'Runs')];
}

// ---- Curves ----

const view = { log: false, smooth: 0, hidden: new Set() };

function ticks(low, high, count, least = 0) {
  const rough = Math.max((high - low) / count, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) values.push(i * step);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  return values.map((value) => ({ value, label: tickLabel(value, step, largest) }));
}

/** Ticks for `log(1 + step)`: powers of ten, with twos and fives between them when the range is short. */
function logTicks(low, high) {
  const factors = (1 + high) / (1 + low) > 200 ? [1] : [1, 2, 5];
  const values = low <= 0 ? [0] : [];
  for (let power = 1; power <= high; power *= 10) values.push(...factors.map((factor) => factor * power));
  return values.filter((v) => v >= low && v <= high).map((value) => ({ value, label: tickLabel(value, value, value) }));
}

/** Points of one run in step order; a value that is no finite number stays as a gap (NaN). */
function points(curve) {
  return curve.map(([step, value]) => ({ step, raw: Number.isFinite(value) ? value : NaN }))
    .sort((a, b) => a.step - b.step);
}

/** Exponential moving average without the pull of its start; weight 0 leaves the values alone. */
function smoothed(list, weight) {
  let sum = 0, norm = 0;
  return list.map(({ step, raw }) => {
    if (Number.isNaN(raw)) return { step, raw, value: NaN };
    sum = weight * sum + (1 - weight) * raw;
    norm = weight * norm + (1 - weight);
    return { step, raw, value: sum / norm };
  });
}

/** Keeps first, lowest, highest and last point of every pixel column, and the ends of each gap (`y` is NaN). */
function thinned(list) {
  const column = ({ x, y }) => (Number.isNaN(y) ? 'gap' : Math.floor(x));
  const kept = [];
  let group = [];
  const flush = () => {
    const low = group.reduce((a, b) => (b.y < a.y ? b : a), group[0]);
    const high = group.reduce((a, b) => (b.y > a.y ? b : a), group[0]);
    kept.push(...group.filter((p, i) => i === 0 || i === group.length - 1 || p === low || p === high));
    group = [];
  };
  for (const point of list) {
    if (group.length && column(point) !== column(group[0])) flush();
    group.push(point);
  }
  flush();
  return kept;
}

/** A path through the points, and dots where they are few or stand alone. */
function line(list, run, kind) {
  const placed = thinned(list);
  const filled = (i) => i >= 0 && i < placed.length && !Number.isNaN(placed[i].y);
  let path = '', dots = [];
  placed.forEach(({ x, y }, i) => {
    if (!filled(i)) return;
    path += `${filled(i - 1) ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`;
    if (list.length <= 30 || !(filled(i - 1) || filled(i + 1))) dots.push(dot(x, y, run));
  });
  return svg('g', { class: kind }, svg('path', { d: path, style: runStroke(run) }), ...dots);
}

function dot(x, y, run) {
  return svg('circle', { cx: x.toFixed(1), cy: y.toFixed(1), r: 2.2, style: `fill: ${runColour(run)}` });
}

class Chart {
  constructor(metric, runs) {
    this.curves = runs.map((run, index) => ({ index, points: points(run.curves[metric] ?? []) }));
    this.series = [];
    this.cursor = svg('g');
    const label = `${metric} by step; the left and right keys read values`;
    this.svg = svg('svg', { class: 'chart', tabindex: 0, role: 'img', 'aria-label': label });
    this.readout = el('div', { class: 'readout', 'aria-live': 'polite' });
    const caption = el('figcaption', { class: 'row' }, el('h3', {}, metric), soft('by step'));
    this.figure = el('figure', { class: 'card' }, caption, this.svg, this.readout);
    this.svg.addEventListener('pointermove', (event) => this.read(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener('pointerleave', () => this.leave());
    this.svg.addEventListener('blur', () => this.leave());
    this.svg.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  draw() {
    this.leave();
    this.series = this.curves.filter(({ index }) => !view.hidden.has(index)).map(({ index, points: raw }) => {
      const all = smoothed(raw, view.smooth);
      return { index, all, finite: all.filter((point) => !Number.isNaN(point.value)) };
    }).filter(({ finite }) => finite.length);
    this.width = Math.max(200, this.svg.clientWidth);
    this.svg.setAttribute('viewBox', `0 0 ${this.width} 200`);
    if (this.series.length) this.svg.replaceChildren(...this.axes(), ...this.lines(), this.cursor);
    else this.svg.replaceChildren(svg('text', { x: 8, y: 24 }, 'no finite value to draw'));
  }

  axes() {
    const steps = this.series.flatMap(({ finite }) => [finite[0].step, finite.at(-1).step]);
    let first = Math.min(...steps), last = Math.max(...steps);
    if (first === last) [first, last] = [Math.max(0, first - 1), last + 1];
    const values = this.series.flatMap((series) => series.finite.map((p) => p.value));
    const [least, most] = [Math.min, Math.max].map((pick) => values.reduce((a, b) => pick(a, b)));
    const room = (most - least) * .05 || Math.abs(most) * .1 || 1;
    const low = least - room, high = most + room;
    const rows = ticks(low, high, 4);
    const columns = view.log && 1 + last > 5 * (1 + first) ? logTicks(first, last) : ticks(first, last, 5, 1);
    const left = 12 + 6.3 * Math.max(...rows.map((tick) => tick.label.length)), right = this.width - 14;
    const along = view.log ? Math.log1p : Number;
    this.x = (step) => left + (right - left) * (along(step) - along(first)) / (along(last) - along(first));
    this.y = (value) => 176 - 168 * (value - low) / (high - low);
    return [
      ...rows.flatMap(({ value, label }) => [
        svg('line', { class: 'grid', x1: left, x2: right, y1: this.y(value), y2: this.y(value) }),
        svg('text', { x: left - 6, y: this.y(value) + 4, 'text-anchor': 'end' }, label)]),
      ...columns.flatMap(({ value, label }) => [
        svg('line', { class: 'axis', x1: this.x(value), x2: this.x(value), y1: 176, y2: 180 }),
        svg('text', { x: this.x(value), y: 193, 'text-anchor': 'middle' }, label)]),
      svg('line', { class: 'axis', x1: left, x2: right, y1: 176, y2: 176 })];
  }

  lines() {
    const place = (list, pick) => list.map((p) => ({ x: this.x(p.step), y: Math.min(176, Math.max(4, this.y(p[pick]))) }));
    const raw = view.smooth ? this.series.map(({ all, index }) => line(place(all, 'raw'), index, 'raw')) : [];
    return [...raw, ...this.series.map(({ all, index }) => line(place(all, 'value'), index))];
  }

  /** Shows every run's point nearest to the pixel, where it lies close to the nearest of them all. */
  read(pixel) {
    if (!this.series.length) return;
    const away = (point) => Math.abs(this.x(point.step) - pixel);
    const nearest = (list) => list.reduce((a, b) => (away(b) < away(a) ? b : a));
    const found = this.series.map(({ index, finite }) => ({ index, ...nearest(finite) }));
    this.at = nearest(found).step;
    const x = this.x(this.at);
    const close = found.filter((point) => Math.abs(this.x(point.step) - x) < 24);
    this.cursor.replaceChildren(svg('line', { class: 'cursor', x1: x, x2: x, y1: 8, y2: 176 }),
      ...close.map((point) => dot(this.x(point.step), this.y(point.value), point.index)));
    this.readout.replaceChildren(`step ${this.at}`, ...close.map((point) => {
      const own = point.step === this.at ? '' : ` at ${point.step}`;
      return el('div', {}, runMark(point.index), el('b', {}, rounded(point.value)), shortNames[point.index] + own);
    }));
    this.readout.classList.toggle('left', x > this.width / 2);
  }

  leave() {
    this.at = undefined;
    this.cursor.replaceChildren();
    this.readout.replaceChildren();
  }

  key(event) {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction || !this.series.length) return;
    event.preventDefault();
    const steps = union(this.series.map(({ finite }) => finite.map((point) => point.step))).sort((a, b) => a - b);
    const stride = Math.max(1, Math.round(steps.length / 60));
    const from = this.at === undefined ? (direction > 0 ? -stride : steps.length) : countAtMost(steps, this.at) - 1;
    this.read(this.x(steps[Math.min(steps.length - 1, Math.max(0, from + direction * stride))]));
  }
}

function curvesSection(runs) {
  const metrics = union(runs.map((run) => Object.keys(run.curves).filter((name) => run.curves[name].length)));
  if (!metrics.length) return null;
  const charts = metrics.map((metric) => new Chart(metric, runs));
  let frame = 0;
  const redraw = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => charts.forEach((chart) => chart.draw()));
  };

  const legend = runs.map((run, index) => ({ run, index })).filter(({ run }) => Object.keys(run.curves).length)
    .map(({ run, index }) => {
      const box = el('input', { type: 'checkbox', checked: '' });
      box.addEventListener('change', () => {
        if (box.checked) view.hidden.delete(index); else view.hidden.add(index);
        redraw();
      });
      return el('label', { title: run.name }, box, runMark(index), shortNames[index]);
    });

  const log = el('input', { type: 'checkbox', id: 'log-x' });
  log.addEventListener('change', () => { view.log = log.checked; redraw(); });

  const smooth = el('input', { type: 'range', id: 'smoothing', min: 0, max: .99, step: .01, value: 0 });
  const weight = el('span', {}, 'none');
  smooth.addEventListener('input', () => {
    view.smooth = smooth.valueAsNumber;
    weight.textContent = view.smooth ? view.smooth.toFixed(2) : 'none';
    redraw();
  });

  const bar = el('div', { class: 'bar row' }, ...legend, el('label', { class: 'controls' }, log, 'Log x'),
    el('label', { class: 'controls' }, 'Smoothing', smooth, weight));
  return [bar, el('div', { class: 'charts' }, ...charts.map((chart) => chart.figure))];
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

// ---- Samples ----

function samplesOf(run, index) {
  const last = run.samples.length - 1;
  const slider = el('input', { type: 'range', class: 'sample-slider', min: 0, max: last, value: last, 'aria-label': 'Step' });
  const label = el('span');
  const texts = el('div', { class: 'samples' });
  const show = () => {
    const { step, texts: list } = run.samples[slider.valueAsNumber];
    label.textContent = `step ${step}`;
    slider.setAttribute('aria-valuetext', label.textContent);
    texts.replaceChildren(...list.map((text) => el('pre', { class: 'text', dir: 'auto', tabindex: 0 }, visible(text))));
  };
  slider.addEventListener('input', show);
  slider.hidden = last === 0;
  show();
  return el('article', { class: 'card' }, el('h3', {}, runMark(index), ' ', run.name),
    el('div', { class: 'row' }, label, slider), texts);
}

function samplesSection(runs) {
  const nodes = runs.flatMap((run, index) => (run.samples.length ? [samplesOf(run, index)] : []));
  return nodes.length ? nodes : null;
}

// ---- Denoising ----

const ABSENT = -1;

/** The text of one sample, a span for each position; `show` touches only the spans that change. */
class TraceText {
  constructor(trace) {
    this.trace = trace;
    this.node = el('div', { class: 'trace-text', role: 'group', 'aria-label': 'Text at this step' });
    this.node.addEventListener('pointerover', ({ target }) => {
      if (target !== this.node) target.title = this.story(this.spans.indexOf(target));
    });
  }

  load(sample) {
    this.writes = sample.start.map((id) => ({ steps: [0], ids: [id] }));
    for (const [step, changes] of [...sample.events].sort((a, b) => a[0] - b[0])) {
      for (const [position, id] of changes) {
        this.writes[position].steps.push(step);
        this.writes[position].ids.push(id);
      }
    }
    this.spans = this.writes.map(() => el('span'));
    this.shown = this.writes.map(() => null);
    this.node.replaceChildren(...this.spans);
  }

  /** Returns how many positions hold a token at `step`. */
  show(step) {
    let open = 0;
    this.writes.forEach(({ steps, ids }, position) => {
      const last = countAtMost(steps, step) - 1;
      const fresh = step > 0 && steps[last] === step;
      const key = 2 * last + fresh;
      if (this.shown[position] !== key) this.paint(this.spans[position], ids[last], steps[last], fresh);
      this.shown[position] = key;
      if (ids[last] !== ABSENT && ids[last] !== this.trace.mask_id) open += 1;
    });
    return open;
  }

  paint(span, id, written, fresh) {
    const classes = fresh ? ['fresh'] : [];
    let text = '';
    if (id === ABSENT) {
      classes.push('absent');
    } else if (id === this.trace.mask_id) {
      classes.push('masked');
      text = '█';
    } else {
      text = visible(this.token(id));
      if (written > 0) classes.push('aged');
      if (/^\s*\n\s*$/.test(text)) classes.push('newline');
    }
    span.className = classes.join(' ');
    span.textContent = text;
    span.style.setProperty('--age', written / this.trace.steps);
  }

  token(id) {
    return this.trace.vocabulary[id] ?? `⟨${id}⟩`;
  }

  story(position) {
    const { steps, ids } = this.writes[position];
    const name = (id) => (id === ABSENT ? 'nothing' : `${JSON.stringify(this.token(id))} (${id})`);
    return [`position ${position}`, ...steps.map((step, i) => `step ${step}: ${name(ids[i])}`)].join('\n');
  }
}

function sampleFacts({ nfe, seconds, entropy }) {
  const facts = [['NFE ', nfe, ''], ['', seconds, ' s'], ['entropy ', entropy, ' nats']];
  return facts.filter(([, value]) => Number.isFinite(value))
    .map(([before, value, after]) => before + Number(value.toPrecision(4)) + after).join(' · ');
}

function traceArticle(trace) {
  const last = trace.steps;
  const text = new TraceText(trace);
  const slider = el('input', { type: 'range', class: 'trace-slider', min: 0, max: last, value: last, 'aria-label': 'Step' });
  const status = el('p', { class: 'trace-status' });
  const facts = soft();
  const given = el('div', { class: 'given' });
  const play = el('button', { type: 'button', class: 'trace-play' }, 'Play');
  const rates = [1, 2, 5, 10, 20, 50, 100, 200];
  const quick = rates.find((rate) => rate * 10 >= last) ?? 200;
  const speed = chooser('trace-speed', rates.map((rate) => [rate, `${rate} steps/s`]), quick);
  const choice = chooser('trace-sample', trace.samples.map((_, i) => [i, `${i + 1} of ${trace.samples.length}`]), 0);

  const show = (step) => {
    slider.value = step;
    const open = text.show(slider.valueAsNumber);
    status.textContent = `step ${slider.value} of ${last} · ${open} of ${text.spans.length} tokens open`;
    slider.setAttribute('aria-valuetext', status.textContent);
  };
  const load = () => {
    const sample = trace.samples[choice.value];
    text.load(sample);
    facts.textContent = sampleFacts(sample);
    given.hidden = !sample.given;
    given.replaceChildren(soft('Given'), el('pre', { class: 'text' }, visible(sample.given ?? '')));
    show(slider.value);
  };
  let timer = 0;
  const setPlaying = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(advance, 1000 / speed.value) : 0;
    play.textContent = on ? 'Pause' : 'Play';
  };
  const advance = () => {
    show(slider.valueAsNumber + 1);
    if (slider.valueAsNumber === last) setPlaying(false);
  };
  const toggle = () => {
    if (!timer && slider.valueAsNumber === last) show(0);
    setPlaying(!timer);
  };

  const jump = (label, name, next) => {
    const button = el('button', { type: 'button', class: 'trace-step', 'aria-label': label, title: label }, name);
    button.addEventListener('click', () => { setPlaying(false); show(next(slider.valueAsNumber)); });
    return button;
  };
  const buttons = el('span', { class: 'buttons' }, jump('First step', '«', () => 0), jump('Step back', '‹', (at) => at - 1),
    play, jump('Step on', '›', (at) => at + 1), jump('Last step', '»', () => last));
  const article = el('article', { class: 'card trace', tabindex: 0, 'aria-label': `${trace.name}; space plays and pauses` },
    el('div', { class: 'row' }, el('h3', {}, trace.name), soft(`sampler ${trace.sampler}`), facts),
    el('div', { class: 'row controls' }, el('label', {}, 'Sample', choice), buttons, slider, el('label', {}, 'Speed', speed)),
    status, text.node, given);

  slider.addEventListener('input', () => show(slider.value));
  choice.addEventListener('change', load);
  speed.addEventListener('change', () => setPlaying(timer !== 0));
  play.addEventListener('click', toggle);
  article.addEventListener('keydown', (event) => {
    // On a button or a list the space key has a meaning of its own.
    if (event.key !== ' ' || ![article, slider].includes(event.target)) return;
    event.preventDefault();
    toggle();
  });
  load();
  return article;
}

function tracesSection(traces) {
  const nodes = traces.filter((trace) => trace.samples.length).map(traceArticle);
  if (!nodes.length) return null;
  const key = (kind, words) => soft(el('span', { class: `key ${kind}` }), words);
  const legend = el('p', { class: 'row note' }, key('mask', ' masked'), key('fresh', ' written in this step'),
    soft('written early ', el('span', { class: 'key age' }), ' late'), soft('no tint: from the start'));
  return [legend, ...nodes];
}

// ---- The page ----

function show() {
  const sections = [
    ['runs', 'Runs', runsSection(data.runs)],
    ['curves', 'Curves', curvesSection(data.runs)],
    ['table', 'Results', resultsSection(data.results)],
    ['published', 'Published figures', publishedSection(data.published)],
    ['samples', 'Samples', samplesSection(data.runs)],
    ['denoising', 'Denoising', tracesSection(data.traces)],
  ].filter(([, , nodes]) => nodes);
  document.title = data.title;
  const made = el('time', { datetime: data.made }, data.made.replace('T', ' ').replace('Z', ' UTC'));
  const links = sections.map(([id, name]) => el('li', {}, el('a', { href: `#${id}` }, name)));
  const nav = links.length ? el('nav', { 'aria-label': 'Sections' }, el('ul', {}, ...links)) : '';
  document.getElementById('header').append(el('h1', {}, data.title), soft('made ', made, ` by maskdiff ${data.version}`), nav);
  const nodes = sections.map(([id, name, content]) => el('section', { id, 'aria-labelledby': `${id}-title` },
    el('h2', { id: `${id}-title` }, name), ...content));
  if (!nodes.length) nodes.push(el('p', { class: 'empty' }, 'Nothing to show: no runs, results, published figures or traces.'));
  document.getElementById('main').append(...nodes);
}

show();
