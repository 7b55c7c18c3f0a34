'use strict';

// The page: asks for texts, shows how they are denoised, and lets the reader change them.

const byId = (id) => document.getElementById(id);
const [form, text, tokens, seed, label, guidance, compare, status] = ['ask', 'text', 'tokens', 'seed', 'label', 'guidance', 'compare', 'status'].map(byId);
const panels = [];
let model = null;
let samplers = [];
let underWay = null;

function say(words) {
  status.textContent = words;
}

/** One sampler with its settings and its text. */
class Panel {
  constructor(number) {
    this.settings = new Settings(number, samplers, () => {});
    this.canvas = new Canvas((at, span) => this.choose(at, span));
    this.slider = el('input', { type: 'range', class: 'steps', min: 0, max: 0, value: 0, 'aria-label': 'Step', disabled: '' });
    this.play = button('Play', () => this.setPlaying(!this.timer), { class: 'play', disabled: '' });
    this.at = el('span', { class: 'at' });
    this.measures = el('dl', { class: 'measures' });
    this.words = el('pre', { class: 'text words', tabindex: 0, hidden: '' });
    this.menu = el('div', { class: 'menu card', role: 'dialog', 'aria-modal': 'true', 'aria-labelledby': `menu-${number}`, hidden: '' });
    // A text of buttons is tedious to hear: whoever listens is told it as a whole when it is done.
    this.said = el('p', { class: 'unseen', role: 'status', 'aria-label': `Text of sampler ${number + 1}` });
    this.error = el('p', { class: 'error', role: 'alert' });
    this.slider.addEventListener('input', () => this.show(this.slider.valueAsNumber));
    const title = el('h2', { id: `panel-${number}` }, `Sampler ${number + 1}`);
    this.node = el('section', { class: 'panel card', 'aria-labelledby': title.id }, title, this.settings.node,
      el('div', { class: 'row player' }, this.play, this.slider, this.at), this.error, this.canvas.node, this.said, this.menu, this.measures, this.words);
  }

  /** What is asked for: the text as it is written, or the tokens that must stay. */
  request(kept) {
    const fixed = kept ?? this.pinned();
    // Of a token that the model puts in front itself no prompt tells.
    const prompt = fixed?.slice(model.lead) ?? (text.value || undefined);
    const count = fixed || /\[MASK[:\]]/.test(text.value) ? undefined : tokens.valueAsNumber || undefined;
    return { ...this.settings.request(), ...labelled(), prompt, max_tokens: count, seed: seed.valueAsNumber || 0 };
  }

  /** Given and pinned tokens with holes for all others; null where nothing is pinned. */
  pinned() {
    if (!this.canvas.pins.size || !this.canvas.tokens) return null;
    const stays = (token, at) => (token && (token.given || this.canvas.pins.has(at)) ? token.id : null);
    // A pin is of the last step, whichever is seen.
    return this.canvas.at(this.canvas.frames.length).map(stays);
  }

  async draw(signal, kept) {
    this.setPlaying(false);
    this.closeMenu();
    this.error.textContent = this.said.textContent = '';
    this.body = this.request(kept);
    const body = { ...this.body, stream: true, denoising: true };
    try {
      await stream('/v1/completions', body, signal, ({ maskdiff: about }) => this.hear(about ?? {}));
    } catch (error) {
      if (error.name !== 'AbortError') this.error.textContent = error.message;
      else this.at.textContent += ', stopped';
    }
  }

  /** A step of the walk, or its end. */
  hear(about) {
    if (about.given) {
      this.canvas.lay(about.given, about.length, Array.isArray(this.body.prompt), model.lead);
      this.walk = { before: 0, step: 0, steps: 0 };
    }
    const step = this.stepOf(about);
    if (about.opened?.length) {
      this.canvas.add(about.ids ? this.lastStep() + 1 : step, about.opened);
      this.follow();
    }
    if (about.ids) this.done(about);
  }

  /** The number of a step among those of all windows or blocks, each of which counts its own. */
  stepOf({ step = 0, steps = 0 }) {
    if (!step || !this.walk) return step;
    if (step <= this.walk.step) this.walk.before += this.walk.steps;
    this.walk = { ...this.walk, step, steps };
    return this.walk.before + step;
  }

  lastStep() {
    return this.canvas.frames.at(-1)?.step ?? 0;
  }

  /** The newest frame is seen while the text is drawn. */
  follow() {
    const count = this.canvas.frames.length;
    this.slider.max = count;
    this.slider.disabled = this.play.disabled = false;
    this.show(count);
  }

  show(frame) {
    this.slider.value = frame;
    const open = this.canvas.show(frame);
    const step = frame ? this.canvas.frames[frame - 1].step : 0;
    this.at.textContent = `step ${step} of ${this.lastStep()} · ${open} of ${this.canvas.spans.length - model.lead} tokens open`;
    this.slider.setAttribute('aria-valuetext', this.at.textContent);
  }

  done(about) {
    // What stands behind the end of the text was cut.
    this.canvas.spans.forEach((span, at) => { span.hidden = at < model.lead || at >= about.ids.length; });
    this.said.textContent = this.canvas.read();
    const facts = [['entropy', `${about.entropy.toFixed(3)} nats`], ['network calls', Number(about.calls.toFixed(2))], ['tokens read', Math.round(about.rows)],
      ['time', `${about.seconds.toPrecision(3)} s`], ...(about.approximate ? [['law', 'approximate: kept keys and values']] : [])];
    this.measures.replaceChildren(...facts.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));
    const { prompt } = this.body;
    const given = typeof prompt === 'string' ? [/\[MASK[:\]]/.test(prompt) ? '--template' : '--prompt', prompt] : [];
    this.words.textContent = `maskdiff sample CHECKPOINT ${[...given, ...about.words].map(quoted).join(' ')}`;
    // Which ids a list of tokens has, a command line cannot say.
    this.words.hidden = Array.isArray(prompt);
  }

  setPlaying(on) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => this.advance(), Math.max(20, Math.min(400, 6000 / Math.max(1, this.canvas.frames.length)))) : 0;
    this.play.textContent = on ? 'Pause' : 'Play';
    if (on && this.slider.value === this.slider.max) this.show(0);
  }

  advance() {
    if (this.slider.value === this.slider.max) this.setPlaying(false);
    else this.show(this.slider.valueAsNumber + 1);
  }

  // ---- What can be done with a token ----

  choose(at, span) {
    const token = this.canvas.tokens[at];
    const pinned = this.canvas.pins.has(at);
    const list = el('ol', { class: 'likeliest', 'aria-label': 'Likeliest values' }, el('li', { class: 'soft' }, 'asking the model'));
    const actions = [];
    if (token && !token.given) {
      actions.push(button(pinned ? 'Unpin' : 'Pin', () => this.pin(at, !pinned), { class: 'pin' }));
    }
    if (token) actions.push(button('Open again', () => this.again(at), { class: 'again' }));
    actions.push(button('Close', () => this.closeMenu(true), { class: 'close' }));
    const name = token ? `${JSON.stringify(token.text)} at position ${at}` : `the hole at position ${at}`;
    this.menu.replaceChildren(el('h3', { id: this.menu.getAttribute('aria-labelledby') }, name), el('div', { class: 'row' }, ...actions),
      soft('Likeliest here, given the other tokens of this step:'), list);
    this.menu.hidden = false;
    this.opener = span;
    this.menu.onkeydown = (event) => this.menuKey(event);
    this.menu.querySelector('button').focus();
    this.likeliest(at, list);
  }

  async likeliest(at, list) {
    const known = this.canvas.tokens.filter((_, place) => !this.canvas.spans[place].hidden).map((token) => token?.id ?? null);
    // Of a token that the model puts in front itself no question tells; the law is that by which the text was drawn.
    const asked = { tokens: known, position: at - model.lead, top: 5, label: this.body?.label, guidance_scale: this.body?.guidance_scale };
    try {
      const answer = await ask('/v1/likeliest', asked);
      const { top } = await answer.json();
      list.replaceChildren(...top.map(({ id, text: read, probability }) => {
        const bar = el('span', { class: 'share', 'aria-hidden': 'true' });
        bar.style.setProperty('--share', probability);
        const set = button(shownToken(visible(read)), () => this.set(at, { id, text: read, p: probability }), { title: 'Put it here and pin it' });
        return el('li', {}, set, bar, el('span', { class: 'number' }, probability.toFixed(3)));
      }));
    } catch (error) {
      list.replaceChildren(el('li', { class: 'error' }, error.message));
    }
  }

  /** Escape closes the menu, and Tab goes round in it. */
  menuKey(event) {
    if (event.key === 'Escape') this.closeMenu(true);
    if (event.key !== 'Tab') return;
    const all = [...this.menu.querySelectorAll('button')];
    const [from, to] = event.shiftKey ? [all[0], all.at(-1)] : [all.at(-1), all[0]];
    if (document.activeElement !== from && all.includes(document.activeElement)) return;
    event.preventDefault();
    to.focus();
  }

  closeMenu(back) {
    if (back && !this.menu.hidden) this.opener?.focus();
    this.menu.hidden = true;
  }

  pin(at, on) {
    if (on) this.canvas.pins.add(at); else this.canvas.pins.delete(at);
    this.canvas.repaint();
    this.closeMenu(true);
    tellPins();
  }

  /** A value of the reader's choice is a step of its own. */
  set(at, { id, text: read, p }) {
    this.canvas.frames.length = this.canvas.shown;
    this.canvas.add(this.lastStep() + 1, [[at, id, read, p]]);
    this.canvas.given.delete(at);
    this.canvas.pins.add(at);
    this.follow();
    this.said.textContent = this.canvas.read();
    this.closeMenu(true);
    tellPins();
  }

  /** Draws one token anew, given all others as they stand. */
  again(at) {
    const kept = this.canvas.tokens.map((token, place) => (place === at ? null : token?.id ?? null))
      .filter((_, place) => place < model.lead || !this.canvas.spans[place].hidden);
    this.canvas.pins.delete(at);
    // The menu that has the focus goes, and all tokens are made anew.
    run((signal) => this.draw(signal, kept)).then(() => this.canvas.focus(at));
  }
}

/** The class that is asked for, and how strongly it guides, as keys of a request. */
function labelled() {
  const scale = guidance.valueAsNumber;
  const guides = (label.value || model.label) && Number.isFinite(scale);
  return { label: label.value || undefined, guidance_scale: guides ? scale : undefined };
}

/** The classes of the model, where it has any. */
function offerLabels() {
  const { labels, label: own, guides } = model;
  document.querySelector('.of-labels').hidden = !labels.length;
  document.querySelector('.of-guidance').hidden = !labels.length || !guides;
  label.replaceChildren(el('option', { value: '' }, own ? `default: ${own}` : 'none'), ...labels.map((name) => el('option', { value: name }, name)));
}

/** A word as a shell takes it. */
function quoted(word) {
  return /^[\w=.,:\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Runs something that the reader may stop. */
async function run(work) {
  underWay?.abort();
  const own = new AbortController();
  underWay = own;
  byId('draw').disabled = true;
  byId('stop').disabled = false;
  say('drawing');
  await work(own.signal);
  if (underWay !== own) return;
  underWay = null;
  byId('draw').disabled = false;
  byId('stop').disabled = true;
  const failed = panels.some(({ error }) => error.textContent);
  say(own.signal.aborted ? 'stopped' : failed ? 'the server has refused it' : 'done');
  remember();
}

function drawAll() {
  return run((signal) => Promise.all(panels.map((panel) => panel.draw(signal))));
}

function tellPins() {
  const pins = panels.reduce((sum, { canvas }) => sum + canvas.pins.size, 0);
  byId('unpin').hidden = !pins;
  byId('draw').textContent = pins ? `Draw around ${pins} pinned` : 'Draw';
  remember();
}

function unpin() {
  panels.forEach(({ canvas }) => {
    canvas.pins.clear();
    if (canvas.spans.length) canvas.repaint();
  });
  tellPins();
}

function setCompare(on) {
  compare.checked = on;
  if (on && panels.length < 2) panels.push(new Panel(1));
  if (!on) panels.length = 1;
  byId('panels').replaceChildren(...panels.map(({ node }) => node));
  byId('panels').classList.toggle('two', on);
  tellPins();
}

// ---- The link ----

/** All that decides what is drawn. */
function state() {
  const of = (panel) => {
    // Tokens that the text on the page was drawn around; pins that were set since are drawn around next.
    const { pins, given } = panel.canvas;
    const sent = panel.body?.prompt;
    const front = Array(model.lead).fill(null);
    return { settings: panel.settings.request(), ...(Array.isArray(sent) ? { tokens: [...front, ...sent], pins: [...pins], given: [...given] } : {}) };
  };
  return { text: text.value, count: tokens.valueAsNumber || undefined, seed: seed.valueAsNumber || 0, ...labelled(), checkpoint: model.checkpoint, panels: panels.map(of) };
}

function remember() {
  const link = `${location.origin}${location.pathname}#${encodeURIComponent(JSON.stringify(state()))}`;
  byId('address').value = link;
  byId('link').hidden = false;
}

/** Draws what a link says. */
async function recall() {
  let said;
  try {
    said = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return;
  }
  text.value = said.text ?? '';
  tokens.value = said.count ?? '';
  seed.value = said.seed ?? 1;
  label.value = said.label ?? '';
  guidance.value = said.guidance_scale ?? '';
  // A label that this model does not have leaves nothing chosen.
  const lacks = label.selectedIndex < 0;
  if (lacks) label.value = '';
  setCompare(said.panels?.length > 1);
  const unknown = panels.filter((panel, i) => said.panels?.[i] && !panel.settings.write(said.panels[i].settings));
  panels.forEach(({ canvas }, i) => {
    canvas.pins = new Set(said.panels?.[i]?.pins);
    canvas.given = new Set(said.panels?.[i]?.given);
  });
  await run((signal) => Promise.all(panels.map((panel, i) => panel.draw(signal, said.panels?.[i]?.tokens))));
  tellPins();
  if (said.checkpoint && said.checkpoint !== model.checkpoint) say('drawn from another checkpoint than that of the link');
  if (lacks) say('drawn without the label of the link, which this model does not have');
  if (unknown.length) say('drawn by another sampler than that of the link, which this server does not have');
}

// ---- The start ----

async function begin() {
  const [models, all] = await Promise.all(['/v1/models', '/v1/samplers'].map(async (path) => (await ask(path)).json()));
  const [{ id, maskdiff }] = models.data;
  model = maskdiff;
  samplers = all.data;
  byId('model').textContent = id;
  document.title = `${id} · maskdiff`;
  byId('about').textContent = `step ${model.step} · ${model.length} tokens · vocabulary of ${model.vocab_size} · checkpoint ${model.checkpoint.slice(0, 12)}`;
  tokens.max = model.length;
  offerLabels();
  panels.push(new Panel(0));
  setCompare(false);
  byId('link').hidden = true;
  if (location.hash.length > 1) await recall();
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (model) drawAll();
});
form.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
text.addEventListener('input', unpinAfterEdit);
byId('stop').addEventListener('click', () => underWay?.abort());
byId('unpin').addEventListener('click', unpin);
byId('other-seed').addEventListener('click', () => { seed.value = Math.floor(Math.random() * 2 ** 31); });
compare.addEventListener('change', () => setCompare(compare.checked));
byId('copy').addEventListener('click', async () => {
  byId('address').select();
  try {
    await navigator.clipboard.writeText(byId('address').value);
    say('copied');
  } catch {
    say('the link is selected: copy it');
  }
});
window.addEventListener('hashchange', recall);

/** Pins are of the tokens of another text. */
function unpinAfterEdit() {
  if (panels.some(({ canvas }) => canvas.pins.size)) unpin();
}

begin().catch((error) => { byId('about').textContent = `The model could not be reached: ${error.message}`; });
