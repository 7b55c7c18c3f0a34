'use strict';

// Requests to the server of this page, with its key where it wants one.

const KEY = 'maskdiff-key';

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** The form that asks for the key; one at a time, however many requests wait for it. */
let asking = null;

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const input = el('input', { type: 'password', id: 'key', required: '', autocomplete: 'current-password' });
    const said = wrong ? 'That is not the key of this server.' : 'This server wants its key.';
    const form = el('form', { id: 'key-form', class: 'card', 'aria-label': 'Key' },
      el('p', { role: 'alert' }, said), el('div', { class: 'row' }, el('label', {}, 'Key', input), el('button', { type: 'submit' }, 'Enter')));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      // A key of other signs than ASCII fits no header.
      if (!/^[\x20-\x7e]+$/.test(input.value.trim())) {
        input.setCustomValidity('A key has letters, digits and signs of ASCII.');
        input.reportValidity();
        return;
      }
      sessionStorage.setItem(KEY, input.value.trim());
      form.remove();
      asking = null;
      resolve();
    });
    input.addEventListener('input', () => input.setCustomValidity(''));
    document.querySelector('main').before(form);
    input.focus();
  });
  return asking;
}

/** An answer of the server. What it refuses is thrown with its words. */
async function ask(path, body, signal) {
  const sent = sessionStorage.getItem(KEY);
  const options = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) };
  const answer = await fetch(path, { ...options, headers: headers(), signal });
  if (answer.status === 401) {
    // Another request may have been given the key meanwhile.
    if (sent === sessionStorage.getItem(KEY)) await askForKey(Boolean(sent));
    return ask(path, body, signal);
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text;
  try {
    message = JSON.parse(text).error.message;
  } catch { /* It is no JSON: it stands as it is. */ }
  throw new Error(message || `the server answered ${answer.status}`);
}

/** Calls `tell` with each event of a stream. */
async function stream(path, body, signal, tell) {
  const reader = (await ask(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error('the server has ended the stream');
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts.filter((text) => text.startsWith('data: '))) {
      const text = part.slice(6);
      if (text === '[DONE]') return;
      const event = JSON.parse(text);
      if (event.error) throw new Error(event.error.message);
      tell(event);
    }
  }
}
