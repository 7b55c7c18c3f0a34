'use strict';

// The runs of the server, read again every few seconds while the page is seen.

const PAUSE = 3000;
const live = document.getElementById('live');
const status = document.getElementById('live-status');
let newest = null;

/** Only what has gone wrong is read aloud: the time changes every few seconds. */
function tell(words, failed) {
  status.setAttribute('role', failed ? 'alert' : 'none');
  status.textContent = words;
}

async function refresh() {
  try {
    const answer = await ask('/runs/data');
    const tag = answer.headers.get('etag');
    if (tag !== newest) {
      show(await answer.json());
      newest = tag;
    }
    tell(`up to date at ${new Date().toLocaleTimeString()}`, false);
  } catch (error) {
    tell(`The runs could not be read: ${error.message}`, true);
  }
}

async function follow() {
  if (live.checked && !document.hidden) await refresh();
  setTimeout(follow, PAUSE);
}

live.addEventListener('change', () => { if (live.checked) refresh(); });
document.addEventListener('visibilitychange', () => { if (live.checked && !document.hidden) refresh(); });
follow();
