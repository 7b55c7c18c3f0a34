'use strict';

// The settings of a sampler as a form, made from the JSON schema of its options.

/** A schema without references and alternatives: of several kinds the one that is not null. */
function plainSchema(schema, root) {
  if (schema.$ref) {
    const found = schema.$ref.replace(/^#\//, '').split('/').reduce((at, name) => at?.[name], root);
    return plainSchema({ ...found, ...schema, $ref: undefined }, root);
  }
  const kinds = schema.anyOf ?? schema.oneOf ?? (schema.allOf?.length === 1 ? schema.allOf : undefined);
  if (!kinds) return schema;
  const real = kinds.filter(({ type }) => type !== 'null').map((kind) => plainSchema(kind, root));
  const words = real.flatMap(({ enum: all, const: one }) => all ?? (one === undefined ? [] : [one]));
  const all = { ...schema, anyOf: undefined, oneOf: undefined, allOf: undefined };
  return words.length && real.every((kind) => kind.enum || kind.const !== undefined) ? { ...all, enum: words } : { ...real[0], ...all };
}

function kindOf({ type }) {
  return Array.isArray(type) ? type.find((kind) => kind !== 'null') : type;
}

/** A control for an option, and how its value is read; undefined is the default. */
function optionControl(id, schema, initial) {
  const kind = kindOf(schema);
  const none = initial === null || initial === undefined ? 'none' : String(initial);
  if (schema.enum || kind === 'boolean') {
    const words = schema.enum ?? [true, false];
    const node = el('select', { id }, el('option', { value: '' }, `default: ${none}`),
      ...words.filter((word) => word !== null).map((word) => el('option', { value: JSON.stringify(word) }, String(word))));
    return { node, read: () => (node.value ? JSON.parse(node.value) : undefined), write: (value) => { node.value = JSON.stringify(value); } };
  }
  const number = kind === 'number' || kind === 'integer';
  const node = el('input', { id, type: number ? 'number' : 'text', placeholder: none, min: schema.minimum, max: schema.maximum,
    step: number ? (kind === 'integer' ? 1 : 'any') : undefined });
  const read = () => {
    const text = node.value.trim();
    if (!text) return undefined;
    if (number) return Number(text);
    try {
      return kind === 'string' ? text : JSON.parse(text);
    } catch {
      return text;
    }
  };
  return { node, read, write: (value) => { node.value = typeof value === 'object' ? JSON.stringify(value) : value; } };
}

/** The settings of samplers in one panel. */
class Settings {
  constructor(panel, samplers, changed) {
    this.samplers = samplers;
    this.panel = panel;
    this.choice = chooser('sampler', samplers.map(({ name }) => [name, name]), samplers.find((one) => one.default)?.name ?? samplers[0].name);
    this.choice.id = `sampler-${panel}`;
    this.about = el('p', { class: 'soft' });
    this.fields = el('div', { class: 'fields' });
    this.count = soft();
    const more = el('details', { class: 'options' }, el('summary', {}, 'Settings ', this.count), this.about, this.fields);
    this.node = el('div', { class: 'chosen' }, el('label', {}, 'Sampler ', this.choice), more);
    this.choice.addEventListener('change', () => { this.load(); changed(); });
    this.fields.addEventListener('input', () => { this.tell(); changed(); });
    this.load();
  }

  load() {
    const sampler = this.samplers.find(({ name }) => name === this.choice.value);
    this.about.textContent = sampler.about;
    const options = Object.entries(sampler.schema.properties ?? {}).map(([name, schema]) => {
      const plain = plainSchema(schema, sampler.schema);
      const id = `option-${this.panel}-${name}`;
      return { name, plain, ...optionControl(id, plain, sampler.defaults?.[name] ?? schema.default), id };
    }).filter(({ plain, name }) => kindOf(plain) !== 'object' && name !== 'argument');
    this.options = options;
    this.fields.replaceChildren(...options.map(({ name, plain, node, id }) => {
      const help = el('span', { class: 'soft', id: `${id}-help` }, plain.description ?? '');
      node.setAttribute('aria-describedby', help.id);
      return el('div', { class: 'field' }, el('label', { for: id }, name), node, help);
    }));
    this.tell();
  }

  tell() {
    const set = Object.keys(this.values()).length;
    this.count.textContent = set ? `${set} set` : 'all as the server has them';
  }

  /** The options that are set. */
  values() {
    const set = this.options.map(({ name, read }) => [name, read()]).filter(([, value]) => value !== undefined);
    return Object.fromEntries(set);
  }

  /** The sampler and its options as keys of a request. */
  request() {
    return { sampler: this.choice.value, ...this.values() };
  }

  /** Takes the settings of a request; says whether its sampler is known. */
  write({ sampler, ...options }) {
    const known = this.samplers.some(({ name }) => name === sampler);
    if (known) this.choice.value = sampler;
    this.load();
    for (const option of this.options) if (option.name in options) option.write(options[option.name]);
    this.tell();
    return known;
  }
}
