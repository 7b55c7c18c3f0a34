'use strict';

// What curves are made of, without a page: points of runs, along steps, tokens or time.

function ticks(low, high, count, least = 0) {
  const rough = Math.max((high - low) / count, least);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) values.push(i * step);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  return values.map((value) => ({ value, label: tickLabel(value, step, largest) }));
}

/** Ticks of a logarithmic axis: powers of ten, with twos and fives between them when the range is short. `zero` begins at 0, as `log(1 + x)` does. */
function logTicks(low, high, zero) {
  const base = zero ? 1 : 0;
  const factors = (base + high) / (base + Math.max(low, 0) || 1e-300) > 200 ? [1] : [1, 2, 5];
  const values = zero && low <= 0 ? [0] : [];
  const first = zero ? 0 : Math.floor(Math.log10(low));
  for (let power = first; 10 ** power <= high; power += 1) values.push(...factors.map((factor) => factor * 10 ** power));
  return values.filter((v) => v >= low && v <= high)
    .map((value) => ({ value, label: value >= 1e-3 ? tickLabel(value, value, value) : value.toExponential(0) }));
}

/** Points of one run in step order; a value that is no finite number stays as a gap (NaN). */
function points(curve) {
  return curve.map(([step, value]) => ({ step, raw: Number.isFinite(value) ? value : NaN }))
    .sort((a, b) => a.step - b.step);
}

/** Exponential moving average without the pull of its start; weight 0 leaves the values alone. The edges of a band are smoothed alike. */
function smoothed(list, weight) {
  const names = ['raw', 'low', 'high'];
  const sums = { raw: 0, low: 0, high: 0 };
  let norm = 0;
  return list.map((point) => {
    if (Number.isNaN(point.raw)) return { ...point, value: NaN };
    norm = weight * norm + (1 - weight);
    for (const name of names) sums[name] = weight * sums[name] + (1 - weight) * (point[name] ?? point.raw);
    return { ...point, value: sums.raw / norm, low: sums.low / norm, high: sums.high / norm };
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

/** The value at `x` on the line through `[x, y]` pairs in order; beyond their ends along the last piece from the origin. */
function along(pairs, x) {
  if (!pairs.length) return NaN;
  let high = 0;
  for (let after = pairs.length; high < after;) {
    const middle = (high + after) >> 1;
    if (pairs[middle][0] >= x) after = middle; else high = middle + 1;
  }
  if (high === pairs.length) {
    const [at, value] = pairs.at(-1);
    return at > 0 ? value * x / at : NaN;
  }
  const [x1, y1] = pairs[high];
  const [x0, y0] = high > 0 ? pairs[high - 1] : [0, 0];
  return x1 === x0 ? y1 : y0 + (y1 - y0) * (x - x0) / (x1 - x0);
}

/** What an axis shows of a run instead of its steps: pairs of step and value, none where they are not known. */
function axisOf(run, axis) {
  const samples = run.curves['train/samples'] ?? [];
  if (axis === 'tokens') {
    const length = Number(run.about?.length);
    return Number.isFinite(length) ? samples.map(([step, count]) => [step, count * length]) : [];
  }
  const speed = new Map(run.curves['perf/samples_per_s'] ?? []);
  let before = 0, hours = 0;
  return samples.filter(([step]) => speed.get(step) > 0).map(([step, count]) => {
    hours += Math.max(0, count - before) / speed.get(step) / 3600;
    before = count;
    return [step, hours];
  });
}

/** Hours of training. */
function hoursOf(run) {
  return axisOf(run, 'hours').at(-1)?.[1];
}

/** Points of a run whose `x` is along an axis. */
function placed(run, metric, axis) {
  const list = points(run.curves[metric] ?? []);
  if (axis === 'step') return list.map((point) => ({ ...point, x: point.step }));
  const pairs = axisOf(run, axis);
  return list.map((point) => ({ ...point, x: along(pairs, point.step) })).filter((point) => Number.isFinite(point.x));
}

/** Several runs as one: at each step that any of them has the mean of those that cover it, the lowest and the highest. */
function banded(lists) {
  const filled = lists.map((list) => list.filter(({ raw }) => !Number.isNaN(raw))).filter((list) => list.length);
  const pairs = filled.map((list) => list.map((point) => [point.x, point.raw]));
  const at = (list, x) => (x < list[0][0] || x > list.at(-1)[0] ? NaN : along(list, x));
  const steps = new Map(filled.flatMap((list) => list.map(({ x, step }) => [x, step])));
  return [...steps].sort(([a], [b]) => a - b).map(([x, step]) => {
    const values = pairs.map((list) => at(list, x)).filter((value) => !Number.isNaN(value));
    const sum = values.reduce((a, b) => a + b, 0);
    return { x, step, raw: sum / values.length, low: Math.min(...values), high: Math.max(...values), runs: values.length };
  });
}
