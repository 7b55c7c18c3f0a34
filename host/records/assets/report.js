'use strict';

// ---- The page ----

/** The sections: how each is made, of which part of the data, so that a refresh makes only those anew whose part has changed. */
const SECTIONS = [
  ['unreadable', 'Not shown', (data) => unreadableSection(data.unreadable ?? []), (data) => data.unreadable ?? []],
  ['runs', 'Runs', (data) => runsSection(data.runs), (data) => data.runs.map(({ curves, samples, ...rest }) => rest)],
  ['curves', 'Curves', (data) => curvesSection(data.runs), (data) => data.runs.map(({ name, settings, about, curves }) => [name, settings, about, Object.keys(curves)])],
  ['table', 'Results', (data) => resultsSection(data.results), (data) => data.results],
  ['published', 'Published figures', (data) => publishedSection(data.published), (data) => data.published],
  ['samples', 'Samples', (data) => samplesSection(data.runs), (data) => data.runs.map(({ name, samples }) => [name, samples])],
  ['denoising', 'Denoising', (data) => tracesSection(data.traces), (data) => data.traces],
];

/** Folders that could not be read, each with the reason. */
function unreadableSection(all) {
  if (!all.length) return null;
  return [el('ul', { class: 'unreadable' }, ...all.map(({ name, why }) => el('li', {}, el('strong', {}, name), ` cannot be read: ${why}`)))];
}

/** What stands on the page now, by section; and what was told last. */
const standing = new Map();
let latest = null;

/** Makes a section where its part of the data is another than before. */
function section([id, name, make, part], data) {
  const state = JSON.stringify(part(data));
  const before = standing.get(id);
  if (before?.state === state) {
    before.content?.update?.(data.runs);
    return before;
  }
  // Whoever is at work in it with the keyboard is not thrown out: it is made anew once they are elsewhere.
  if (before?.node?.contains(document.activeElement)) {
    const later = () => setTimeout(() => { if (!before.node.contains(document.activeElement)) show(latest); });
    if (!before.waits) before.node.addEventListener('focusout', later);
    before.waits = true;
    return before;
  }
  const content = make(data);
  const node = content && el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, name), ...content);
  const made = { id, name, state, content, node };
  standing.set(id, made);
  return made;
}

/** Shows data, for the first time or again. */
function show(data) {
  latest = data;
  data.runs.forEach((run) => {
    run.headline = { ...run.headline, hours: hoursOf(run) };
    run.settings ??= {};
  });
  nameRuns(data.runs);
  const sections = SECTIONS.map((one) => section(one, data)).filter(({ node }) => node);
  document.title = data.title;
  const made = el('time', { datetime: data.made }, data.made.replace('T', ' ').replace('Z', ' UTC'));
  const when = data.made ? soft('made ', made, ` by maskdiff ${data.version}`) : soft(`maskdiff ${data.version}`);
  const links = sections.map(({ id, name }) => el('li', {}, el('a', { href: `#${id}` }, name)));
  const nav = links.length ? el('nav', { 'aria-label': 'Sections' }, el('ul', {}, ...links)) : '';
  const header = document.getElementById('header');
  const head = el('div', { id: 'report-head' }, el('h1', {}, data.title), when, nav);
  const old = document.getElementById('report-head');
  if (!old) header.append(head);
  else if (old.textContent !== head.textContent) old.replaceWith(head);
  const main = document.getElementById('main');
  const nodes = sections.map(({ node }) => node);
  if (!nodes.length) nodes.push(el('p', { class: 'empty' }, 'Nothing to show: no runs, results, published figures or traces.'));
  // Nodes that stay where they are keep what the reader has set in them.
  const same = nodes.length === main.children.length && nodes.every((node, i) => main.children[i] === node);
  if (!same) main.replaceChildren(...nodes);
}
