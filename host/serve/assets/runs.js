'use strict';

// The runs of the server, read again every few seconds while the page is seen.

const PAUSE = 3000;
const live = document.getElementById('live');
const status = document.getElementById('live-status');
let newest = null;

async function refresh() {
  try {
    const answer = await ask('/runs/data');
    const tag = answer.headers.get('etag');
    if (tag !== newest) {
      show(await answer.json());
      newest = tag;
    }
    status.textContent = `up to date at ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    status.textContent = `The runs could not be read: ${error.message}`;
  }
}

async function follow() {
  if (live.checked && !document.hidden) await refresh();
  setTimeout(follow, PAUSE);
}

live.addEventListener('change', () => { if (live.checked) refresh(); });
document.addEventListener('visibilitychange', () => { if (live.checked && !document.hidden) refresh(); });
follow();
