'use strict';

// ---- Samples ----

/** The samples of all runs at one step: of each the latest that are not later. */
function samplesSection(runs) {
  const shown = runs.map((run, index) => ({ run, index })).filter(({ run }) => run.samples.length);
  if (!shown.length) return null;
  const steps = union(shown.map(({ run }) => run.samples.map(({ step }) => step))).sort((a, b) => a - b);
  const last = steps.length - 1;
  const kept = countAtMost(steps, view.sampleStep ?? Infinity) - 1;
  const slider = el('input', { type: 'range', class: 'sample-slider', min: 0, max: last, 'aria-label': 'Step' });
  slider.value = Math.max(0, kept);
  const label = el('span');
  const columns = el('div', { class: 'beside' });
  const show = () => {
    const at = steps[slider.valueAsNumber];
    view.sampleStep = slider.valueAsNumber === last ? undefined : at;
    label.textContent = `step ${at}`;
    slider.setAttribute('aria-valuetext', label.textContent);
    columns.replaceChildren(...shown.map(({ run, index }) => {
      const found = run.samples.filter(({ step }) => step <= at).at(-1);
      const own = !found ? 'none yet' : found.step === at ? '' : `of step ${found.step}`;
      return el('article', { class: 'card' }, el('h3', {}, runMark(index), ' ', shortNames[index]), soft(own),
        ...(found?.texts ?? []).map((text) => el('pre', { class: 'text', dir: 'auto', tabindex: 0 }, visible(text))));
    }));
  };
  slider.addEventListener('input', show);
  slider.hidden = last === 0;
  show();
  return [el('div', { class: 'row' }, label, slider), columns];
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
    this.writes = sample.start.map((id) => ({ steps: [0], ids: [id], sure: [null] }));
    for (const [step, changes] of [...sample.events].sort((a, b) => a[0] - b[0])) {
      for (const [position, id, p] of changes) {
        this.writes[position].steps.push(step);
        this.writes[position].ids.push(id);
        this.writes[position].sure.push(p ?? null);
      }
    }
    // Steps that wrote nothing are no frames of their own.
    this.frames = union([[0], sample.events.map(([step]) => step)]).sort((a, b) => a - b);
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
    const { steps, ids, sure } = this.writes[position];
    const probability = (p) => (p === null ? '' : `, probability ${Number(p.toPrecision(3))}`);
    const name = (id) => (id === ABSENT ? 'nothing' : `${JSON.stringify(this.token(id))} (${id})`);
    return [`position ${position}`, ...steps.map((step, i) => `step ${step}: ${name(ids[i])}${probability(sure[i])}`)].join('\n');
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

  const show = (frame) => {
    slider.value = frame;
    const step = text.frames[slider.valueAsNumber];
    const open = text.show(step);
    status.textContent = `step ${step} of ${last} · ${open} of ${text.spans.length} tokens open`;
    slider.setAttribute('aria-valuetext', status.textContent);
  };
  const load = () => {
    const sample = trace.samples[choice.value];
    text.load(sample);
    facts.textContent = sampleFacts(sample);
    given.hidden = !sample.given;
    given.replaceChildren(soft('Given'), el('pre', { class: 'text' }, visible(sample.given ?? '')));
    slider.max = text.frames.length - 1;
    show(slider.max);
  };
  let timer = 0;
  const setPlaying = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(advance, 1000 / speed.value) : 0;
    play.textContent = on ? 'Pause' : 'Play';
  };
  const advance = () => {
    show(slider.valueAsNumber + 1);
    if (slider.value === slider.max) setPlaying(false);
  };
  const toggle = () => {
    if (!timer && slider.value === slider.max) show(0);
    setPlaying(!timer);
  };

  const jump = (label, name, next) => {
    const button = el('button', { type: 'button', class: 'trace-step', 'aria-label': label, title: label }, name);
    button.addEventListener('click', () => { setPlaying(false); show(next(slider.valueAsNumber)); });
    return button;
  };
  const buttons = el('span', { class: 'buttons' }, jump('First step', '«', () => 0), jump('Step back', '‹', (at) => at - 1),
    play, jump('Step on', '›', (at) => at + 1), jump('Last step', '»', () => slider.max));
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
    soft('written early ', el('span', { class: 'key age' }), ' late'), soft('no tint: from the start'), soft('↵ line break'), soft('∅ token without text'), soft('steps that wrote nothing are left out'));
  return [legend, ...nodes];
}

