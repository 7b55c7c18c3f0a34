'use strict';

// A text while it is denoised: what each step wrote, and the tokens as they stand at one of the steps.

/** How a token reads where it would not be seen. */
function shownToken(text) {
  return text.replace(/\n/g, '↵').replace(/^$/, '∅');
}

class Canvas {
  /** `act` is called with a position when its token is chosen. */
  constructor(act) {
    this.act = act;
    this.node = el('div', { class: 'canvas', role: 'group', 'aria-label': 'Text; arrow keys move, Enter opens what can be done with a token' });
    this.node.addEventListener('click', (event) => {
      const at = this.spans.indexOf(event.target.closest('.token'));
      if (at >= 0) this.act(at, this.spans[at]);
    });
    this.node.addEventListener('keydown', (event) => this.key(event));
    this.clear();
  }

  clear() {
    this.start = [];
    this.frames = [];
    this.given = new Set();
    this.pins = new Set();
    this.spans = [];
    this.node.replaceChildren();
  }

  /** A new walk from what is given, in a text of this length. Of tokens that were only kept from the text before, it is known how sure the model was. */
  lay(given, length, kept, lead = 0) {
    const before = this.tokens ?? [];
    if (!kept) this.given = new Set(given.map(([at]) => at));
    this.frames = [];
    this.start = Array.from({ length }, () => null);
    for (const [at, id, text] of given) {
      const p = before[at]?.id === id ? before[at].p : undefined;
      this.start[at] = this.given.has(at) ? { id, text, given: true } : { id, text, p };
    }
    this.spans = this.start.map(() => el('button', { type: 'button', class: 'token', tabindex: -1 }));
    // What the model puts in front itself is no part of the text.
    this.spans.slice(0, lead).forEach((span) => { span.hidden = true; });
    this.spans.slice(lead, lead + 1).forEach((span) => { span.tabIndex = 0; });
    this.node.replaceChildren(...this.spans);
    this.show(0);
  }

  /** A step and what it wrote. */
  add(step, opened) {
    this.frames.push({ step, opened });
    const last = Math.max(-1, ...opened.map(([at]) => at));
    while (this.spans.length <= last) {
      this.start.push(null);
      const span = el('button', { type: 'button', class: 'token', tabindex: this.spans.length ? -1 : 0 });
      this.spans.push(span);
      this.node.append(span);
    }
  }

  /** The tokens after a number of frames; a hole is null. */
  at(frame) {
    const tokens = this.start.slice();
    this.frames.slice(0, frame).forEach(({ opened }, number) => opened.forEach(([at, id, text, p]) => {
      tokens[at] = text === '[MASK]' ? null : { id, text, p: p ?? undefined, frame: number + 1 };
    }));
    return tokens;
  }

  show(frame) {
    this.shown = frame;
    this.tokens = this.at(frame);
    this.tokens.forEach((token, at) => this.paint(this.spans[at], token, at));
    return this.tokens.filter((token, at) => token && !this.spans[at].hidden).length;
  }

  paint(span, token, at) {
    const classes = ['token'];
    let said = `position ${at}: `;
    if (!token) {
      classes.push('hole');
      span.style.removeProperty('--sure');
      span.textContent = '▁';
      said += 'masked';
    } else {
      span.textContent = shownToken(visible(token.text));
      said += JSON.stringify(token.text);
      if (token.given) classes.push('stays');
      if (token.frame && token.frame === this.shown) classes.push('fresh');
      if (token.p === undefined) {
        if (!token.given) classes.push('plain');
        span.style.removeProperty('--sure');
      } else {
        span.style.setProperty('--sure', token.p);
        said += `, probability ${token.p.toFixed(3)} when it was opened`;
      }
      if (token.given) said += ', given';
      if (/\n/.test(token.text)) classes.push('newline');
    }
    if (this.pins.has(at)) {
      classes.push('pinned');
      said += ', pinned';
    }
    span.className = classes.join(' ');
    span.title = said;
    span.setAttribute('aria-label', said);
  }

  /** The text as it is seen, in words. */
  read() {
    const seen = this.tokens.filter((_, at) => !this.spans[at].hidden);
    return seen.map((token) => token?.text ?? ' masked ').join('').trim();
  }

  repaint() {
    this.show(this.shown);
  }

  key(event) {
    const from = this.spans.indexOf(document.activeElement);
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity }[event.key];
    if (from < 0 || !move) return;
    event.preventDefault();
    this.focus(from + move);
  }

  /** Moves to a token, of those that are seen the nearest. */
  focus(to) {
    const seen = this.spans.filter((span) => !span.hidden);
    const before = this.spans.filter((span, at) => span.hidden && at < to).length;
    const span = seen[Math.max(0, Math.min(seen.length - 1, to - (Number.isFinite(to) && this.spans[0]?.hidden ? before : 0)))];
    if (!span) return;
    this.spans.forEach((other) => { other.tabIndex = other === span ? 0 : -1; });
    span.focus();
  }
}
