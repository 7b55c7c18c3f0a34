'use strict';

// ---- Curves ----

/** How the reader looks at the page; it outlasts a refresh. */
const view = { axis: 'step', logX: false, logY: false, smooth: 0, bands: true, hidden: new Set(), zoom: new Map(), folded: new Set() };

const AXES = { step: 'step', tokens: 'tokens', hours: 'hours of training' };

/** On which text, cut by which tokenizer, a run was trained. */
function textKey(run) {
  return `${run.about?.data ?? ''}\n${run.about?.tokenizer ?? ''}`;
}

function textName(run) {
  return [run.about?.data, run.about?.tokenizer].filter(Boolean).join(' · ') || 'unknown';
}

/** Whether numbers of a metric depend on the text and its tokens. */
function isOfText(metric) {
  return /^(val|sample|data)\/|\/(nelbo|ppl|loss|bits)/.test(metric);
}

/** Runs as lines of a chart: each by itself, or the seeds of one configuration as one. */
function groups(runs) {
  const key = (run) => JSON.stringify(Object.entries(run.settings).filter(([name]) => name !== 'seed' && !name.startsWith('run.')).sort());
  const found = new Map();
  runs.forEach((run, index) => {
    const own = Object.keys(run.settings).length ? key(run) : run.name;
    if (!found.has(own)) found.set(own, []);
    found.get(own).push(index);
  });
  return [...found.values()];
}

function series(runs) {
  const single = (index) => ({ name: shortNames[index], indices: [index], colour: index });
  return groups(runs).flatMap((indices) => {
    if (!view.bands || indices.length < 2) return indices.map(single);
    const seeds = indices.map((index) => runs[index].settings.seed).join(', ');
    return [{ name: `${shortNames[indices[0]]} and ${indices.length - 1} more (seeds ${seeds})`, indices, colour: indices[0] }];
  });
}

/** A path through the points, and dots where they are few or stand alone. */
function line(list, run, kind) {
  const kept = thinned(list);
  const filled = (i) => i >= 0 && i < kept.length && !Number.isNaN(kept[i].y);
  let path = '', dots = [];
  kept.forEach(({ x, y }, i) => {
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
  constructor(metric, runs, text) {
    this.metric = metric;
    this.text = text;
    this.id = `${metric}\n${text ?? ''}`;
    this.runs = runs;
    this.series = [];
    this.cursor = svg('g');
    this.band = svg('rect', { class: 'zooming', y: 8, height: 168, width: 0 });
    const label = `${metric} by ${AXES[view.axis]}; left and right read values, plus and minus zoom, 0 shows all`;
    this.svg = svg('svg', { class: 'chart', tabindex: 0, role: 'img', 'aria-label': label });
    this.readout = el('div', { class: 'readout', 'aria-live': 'polite' });
    this.by = soft();
    this.whole = button('Whole', () => this.zoomTo(null), { class: 'whole', hidden: '' });
    const save = el('span', { class: 'save' }, this.whole,
      button('SVG', () => this.saveSvg(), { 'aria-label': `Download ${metric} as SVG` }),
      button('CSV', () => this.saveCsv(), { 'aria-label': `Download ${metric} as CSV` }));
    const caption = el('figcaption', { class: 'row' }, el('h3', {}, metric), this.by, save);
    this.figure = el('figure', { class: 'card' }, caption, ...(text ? [el('p', { class: 'of-text' }, `only runs on ${text}`)] : []),
      this.svg, this.readout);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  listen() {
    const at = (event) => event.clientX - this.svg.getBoundingClientRect().left;
    this.svg.addEventListener('pointerdown', (event) => { if (event.button === 0) this.from = at(event); });
    this.svg.addEventListener('pointermove', (event) => {
      const wide = this.from !== undefined && event.buttons === 1 && Math.abs(at(event) - this.from) > 4;
      if (wide) {
        this.band.setAttribute('x', Math.min(this.from, at(event)));
        this.band.setAttribute('width', Math.abs(at(event) - this.from));
      } else {
        this.read(at(event));
      }
    });
    this.svg.addEventListener('pointerup', (event) => {
      const [from, to] = [this.from, at(event)];
      this.from = undefined;
      this.band.setAttribute('width', 0);
      if (from !== undefined && Math.abs(to - from) > 4 && this.back) {
        this.zoomTo([this.back(Math.min(from, to)), this.back(Math.max(from, to))]);
      }
    });
    this.svg.addEventListener('dblclick', () => this.zoomTo(null));
    this.svg.addEventListener('pointerleave', () => {
      this.from = undefined;
      this.leave();
    });
    this.svg.addEventListener('blur', () => this.leave());
    this.svg.addEventListener('keydown', (event) => this.key(event));
  }

  zoomTo(range) {
    const before = view.zoom.get(this.id);
    if (range) view.zoom.set(this.id, range); else view.zoom.delete(this.id);
    this.load();
    // Between two points there is nothing to see.
    if (range && !this.series.some(({ finite }) => finite.length > 1)) {
      if (before) view.zoom.set(this.id, before); else view.zoom.delete(this.id);
    }
    this.draw();
  }

  /** The points of each line, and the runs of which nothing is known along this axis. */
  load() {
    const shown = series(this.runs).filter(({ name }) => !view.hidden.has(name));
    const own = shown.map((one) => ({ ...one, indices: one.indices.filter((i) => !this.text || textName(this.runs[i]) === this.text) }));
    this.series = own.map((one) => {
      const lists = one.indices.map((index) => placed(this.runs[index], this.metric, view.axis)).filter((list) => list.length);
      const raw = lists.length > 1 ? banded(lists) : lists[0] ?? [];
      const [low, high] = view.zoom.get(this.id) ?? [-Infinity, Infinity];
      const all = smoothed(raw, view.smooth).filter(({ x }) => x >= low && x <= high);
      const usable = (point) => !Number.isNaN(point.value) && !(view.logY && point.value <= 0);
      return { ...one, all, band: lists.length > 1, finite: all.filter(usable) };
    }).filter(({ finite }) => finite.length);
  }

  draw() {
    this.leave();
    this.load();
    this.whole.hidden = !view.zoom.has(this.id);
    this.by.textContent = `by ${AXES[view.axis]}`;
    this.width = Math.max(200, this.svg.clientWidth);
    this.svg.setAttribute('viewBox', `0 0 ${this.width} 200`);
    if (this.series.length) this.svg.replaceChildren(...this.axes(), ...this.lines(), this.band, this.cursor);
    else this.svg.replaceChildren(svg('text', { x: 8, y: 24 }, this.missing()));
  }

  missing() {
    const some = this.runs.some((run) => (run.curves[this.metric] ?? []).length);
    return some && view.axis !== 'step' ? `no ${AXES[view.axis]} are known here` : 'no value to draw';
  }

  axes() {
    const ends = this.series.flatMap(({ finite }) => [finite[0].x, finite.at(-1).x]);
    let first = Math.min(...ends), last = Math.max(...ends);
    if (first === last) [first, last] = view.axis === 'step' ? [Math.max(0, first - 1), last + 1] : [first * .9, last * 1.1 || 1];
    const values = this.series.flatMap(({ finite, band }) => finite.flatMap((p) => (band ? [p.value, p.low, p.high] : [p.value])))
      .filter((value) => !view.logY || value > 0);
    const [least, most] = [Math.min, Math.max].map((pick) => values.reduce((a, b) => pick(a, b)));
    const up = view.logY ? Math.log10 : Number;
    const spread = up(most) - up(least);
    // Values that differ by rounding alone are alike.
    const alike = spread <= 1e-9 * Math.abs(up(most));
    const room = alike ? Math.abs(up(most)) * .1 || 1 : spread * .05;
    const low = up(least) - room, high = up(most) + room;
    const few = view.logY && most / least < 3;
    const rows = view.logY && !few ? logTicks(10 ** low, 10 ** high) : ticks(view.logY ? 10 ** low : low, view.logY ? 10 ** high : high, 4);
    const whole = view.axis === 'step';
    const wide = view.logX && 1 + last > 5 * (1 + first);
    const columns = wide ? logTicks(first, last, true) : ticks(first, last, Math.min(5, this.width / 80), whole ? 1 : 0);
    const left = 12 + 6.3 * Math.max(...rows.map((tick) => tick.label.length)), right = this.width - 14;
    const over = view.logX ? Math.log1p : Number, back = view.logX ? Math.expm1 : Number;
    this.x = (x) => left + (right - left) * (over(x) - over(first)) / (over(last) - over(first));
    this.back = (pixel) => back(over(first) + (over(last) - over(first)) * Math.min(1, Math.max(0, (pixel - left) / (right - left))));
    this.y = (value) => 176 - 168 * (up(value) - low) / (high - low);
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
    const high = (value) => Math.min(176, Math.max(4, this.y(value)));
    const place = (list, pick) => list.map((p) => ({ x: this.x(p.x), y: view.logY && p[pick] <= 0 ? NaN : high(p[pick]) }));
    const bands = this.series.filter(({ band }) => band).map(({ finite, colour }) => {
      const edge = (pick) => finite.map((p) => `${this.x(p.x).toFixed(1)} ${high(view.logY ? Math.max(p[pick], 1e-300) : p[pick]).toFixed(1)}`);
      return svg('path', { class: 'band', d: `M${edge('low').join('L')}L${edge('high').reverse().join('L')}Z`, style: `fill: ${runColour(colour)}` });
    });
    const raw = view.smooth ? this.series.map(({ all, colour }) => line(place(all, 'raw'), colour, 'raw')) : [];
    return [...bands, ...raw, ...this.series.map(({ all, colour }) => line(place(all, 'value'), colour))];
  }

  /** Shows every line's point nearest to the pixel, where it lies close to the nearest of them all. */
  read(pixel) {
    if (!this.series.length) return;
    const away = (point) => Math.abs(this.x(point.x) - pixel);
    const nearest = (list) => list.reduce((a, b) => (away(b) < away(a) ? b : a));
    const found = this.series.map((one) => ({ ...one, ...nearest(one.finite) }));
    const best = nearest(found);
    this.at = best.x;
    const x = this.x(this.at);
    const close = found.filter((point) => Math.abs(this.x(point.x) - x) < 24);
    this.cursor.replaceChildren(svg('line', { class: 'cursor', x1: x, x2: x, y1: 8, y2: 176 }),
      ...close.map((point) => dot(this.x(point.x), this.y(point.value), point.colour)));
    const where = view.axis === 'step' ? `step ${best.step}` : `${rounded(best.x)} ${AXES[view.axis]}, step ${best.step}`;
    this.readout.replaceChildren(where, ...close.map((point) => {
      const own = point.step === best.step ? '' : ` at ${point.step}`;
      const range = point.band && point.runs > 1 ? ` (${rounded(point.low)} to ${rounded(point.high)})` : '';
      return el('div', {}, runMark(point.colour), el('b', {}, rounded(point.value)), range, ` ${point.name}${own}`);
    }));
    this.readout.classList.toggle('left', x > this.width / 2);
  }

  leave() {
    this.at = undefined;
    this.cursor.replaceChildren();
    this.readout.replaceChildren();
  }

  key(event) {
    if (event.key === '0') this.zoomTo(null);
    if (!this.series.length) return;
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const factor = { '+': .5, '=': .5, '-': 2 }[event.key];
    if (factor) {
      const places = this.series.flatMap(({ finite }) => [finite[0].x, finite.at(-1).x]);
      const [low, high] = view.zoom.get(this.id) ?? [Math.min(...places), Math.max(...places)];
      const middle = this.at ?? (low + high) / 2, half = (high - low) / 2 * factor;
      this.zoomTo([middle - half, middle + half]);
    }
    if (!direction) return;
    event.preventDefault();
    const places = union(this.series.map(({ finite }) => finite.map((point) => point.x))).sort((a, b) => a - b);
    const stride = Math.max(1, Math.round(places.length / 60));
    const from = this.at === undefined ? (direction > 0 ? -stride : places.length) : countAtMost(places, this.at) - 1;
    this.read(this.x(places[Math.min(places.length - 1, Math.max(0, from + direction * stride))]));
  }

  /** The picture as a file of its own: what the page's style says of it stands in it. */
  saveSvg() {
    this.leave();
    const copy = this.svg.cloneNode(true);
    const shown = [...this.svg.querySelectorAll('*')];
    [...copy.querySelectorAll('*')].forEach((node, i) => {
      const style = getComputedStyle(shown[i]);
      for (const name of ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'fill-opacity', 'opacity', 'font-size', 'font-family', 'display']) {
        node.setAttribute(name, style.getPropertyValue(name));
      }
      for (const name of ['style', 'class']) node.removeAttribute(name);
    });
    const back = svg('rect', { width: '100%', height: '100%', fill: getComputedStyle(this.figure).backgroundColor });
    copy.prepend(svg('title', {}, `${this.metric} by ${AXES[view.axis]}`), back);
    for (const name of ['class', 'tabindex', 'role', 'aria-label']) copy.removeAttribute(name);
    fill(copy, { xmlns: 'http://www.w3.org/2000/svg', width: this.width, height: 200 }, []);
    download(`${this.metric.replaceAll('/', '-')}.svg`, 'image/svg+xml', new XMLSerializer().serializeToString(copy));
  }

  saveCsv() {
    download(`${this.metric.replaceAll('/', '-')}.csv`, 'text/csv', this.csv());
  }

  csv() {
    const indices = this.series.flatMap((one) => one.indices);
    const rows = indices.flatMap((index) => placed(this.runs[index], this.metric, view.axis)
      .map(({ step, x, raw }) => csvLine([this.runs[index].name, step, x, raw])));
    return csvLine(['run', 'step', view.axis === 'step' ? 'x' : view.axis, this.metric]) + rows.join('');
  }
}

/** Metrics in the order in which they are looked for, by group. */
function grouped(metrics) {
  const loss = (name) => /^(val|train)\/(nelbo|ppl|loss|bits_per_token)$/.test(name);
  const performance = (name) => /^(perf|system)\//.test(name);
  const order = ['val/nelbo', 'train/nelbo', 'val/loss', 'train/loss', 'val/ppl'];
  const rank = (name) => (order.indexOf(name) + order.length + 1) % (order.length + 1);
  return [
    ['Loss', metrics.filter(loss).sort((a, b) => rank(a) - rank(b))],
    ['Training and text', metrics.filter((name) => !loss(name) && !performance(name))],
    ['Performance', metrics.filter(performance)],
  ].filter(([, names]) => names.length);
}

/** A chart for each metric; where runs were trained on other texts, one for each text. */
function chartsOf(metric, runs) {
  const texts = [...new Set(runs.filter((run) => (run.curves[metric] ?? []).length).map(textName))];
  if (texts.length < 2 || !isOfText(metric)) return [new Chart(metric, runs)];
  return texts.map((text) => new Chart(metric, runs, text));
}

/** The legend: a box for each line. */
function legend(runs, redraw) {
  return series(runs).filter(({ indices }) => indices.some((i) => Object.keys(runs[i].curves).length)).map(({ name, colour, indices }) => {
    const box = el('input', { type: 'checkbox', checked: view.hidden.has(name) ? undefined : '' });
    box.addEventListener('change', () => {
      if (box.checked) view.hidden.delete(name); else view.hidden.add(name);
      redraw();
    });
    return el('label', { title: indices.map((i) => runs[i].name).join('\n') }, box, runMark(colour), name);
  });
}

/** The controls above the charts. */
function curvesBar(runs, redraw) {
  const names = el('span', { class: 'legend row' }, ...legend(runs, redraw));
  const axis = chooser('axis', Object.entries(AXES), view.axis);
  axis.id = 'axis';
  axis.addEventListener('change', () => {
    view.axis = axis.value;
    // A part of one axis is none of another.
    view.zoom.clear();
    redraw();
  });
  const smooth = el('input', { type: 'range', id: 'smoothing', min: 0, max: .99, step: .01 });
  smooth.value = view.smooth;
  const weight = el('span');
  const say = () => { weight.textContent = view.smooth ? view.smooth.toFixed(2) : 'none'; };
  smooth.addEventListener('input', () => {
    view.smooth = smooth.valueAsNumber;
    say();
    redraw();
  });
  say();
  const several = groups(runs).some((indices) => indices.length > 1);
  const bands = several ? [tick('bands', 'Seeds as one band', view.bands, (on) => {
    view.bands = on;
    names.replaceChildren(...legend(runs, redraw));
    redraw();
  })] : [];
  return el('div', { class: 'bar row' }, names, el('label', { class: 'controls' }, 'Along', axis),
    tick('log-x', 'Log x', view.logX, (on) => { view.logX = on; redraw(); }),
    tick('log-y', 'Log y', view.logY, (on) => { view.logY = on; redraw(); }),
    el('label', { class: 'controls' }, 'Smoothing', smooth, weight), ...bands);
}

function curvesSection(runs) {
  const metrics = union(runs.map((run) => Object.keys(run.curves).filter((name) => run.curves[name].length)));
  if (!metrics.length) return null;
  const charts = [];
  const make = (metric) => {
    const own = chartsOf(metric, runs);
    charts.push(...own);
    return own.map((chart) => chart.figure);
  };
  const parts = grouped(metrics).map(([name, names]) => {
    const grid = el('div', { class: 'charts' }, ...names.flatMap(make));
    const open = name !== 'Performance' || view.folded.has(name) ? '' : undefined;
    const part = el('details', { class: 'group-of-charts', open }, el('summary', {}, `${name} (${names.length})`), grid);
    part.addEventListener('toggle', () => {
      if (part.open) view.folded.add(name); else view.folded.delete(name);
    });
    return part;
  });
  let frame = 0;
  const redraw = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => charts.forEach((chart) => chart.draw()));
  };
  let newest = runs;
  const all = button('All curves as CSV', () => download('curves.csv', 'text/csv', allCurves(newest)), { id: 'all-csv' });
  const signs = el('p', { class: 'soft row note' }, 'Line: as measured, or smoothed with the measured one faint behind it. Band: lowest to highest of the seeds, its line their mean. '
    + 'Dot: a value that stands alone. Gap: no finite number. Drag to zoom, double-click for the whole.', all);
  const nodes = [curvesBar(runs, redraw), signs, ...parts];
  // A refresh with the same curves only gives them their new points.
  nodes.update = (next) => {
    newest = next;
    charts.forEach((chart) => { chart.runs = next; });
    redraw();
  };
  return nodes;
}

function allCurves(runs) {
  const rows = runs.flatMap((run) => Object.entries(run.curves)
    .flatMap(([metric, list]) => list.map(([step, value]) => csvLine([run.name, metric, step, value]))));
  return csvLine(['run', 'metric', 'step', 'value']) + rows.join('');
}
