'use strict';
// The line as a picture: what flows through each stage, and what leaves it at the side. Wide, or tall on a phone.

import { svg } from './chart.js';
import { ago, bytes, count, duration, heldBytes, isShut, live, markOf, owed, plural, rate } from './words.js';

/** @typedef {import('./words.js').Tone} Tone */
/** @typedef {{x: number, y: number, width: number, height: number}} Box */
/** @typedef {{tone: Tone, value: string, note: string}} Saying */

const STAGES = ['venue', 'connections', 'check', 'encode', 'deliver', 'kinesis'];
const SIDES = { repair: 'check', letters: 'encode', spool: 'deliver' };
const TITLES = {
  venue: 'Venue', connections: 'Connections', check: 'Check ids', encode: 'Encode', deliver: 'Deliver', kinesis: 'Kinesis',
  repair: 'Repair', letters: 'Dead letters', spool: 'Spool',
};

/** @returns {{size: number[], boxes: Object<string, Box>}} */
function wide() {
  const [width, height, step] = [154, 88, 186];
  const boxes = {};
  STAGES.forEach((name, index) => { boxes[name] = { x: 1 + index * step, y: 24, width, height }; });
  for (const [name, stage] of Object.entries(SIDES)) boxes[name] = { x: boxes[stage].x, y: 156, width, height: 74 };
  return { size: [5 * step + width + 2, 232], boxes };
}

/** @returns {{size: number[], boxes: Object<string, Box>}} */
function tall() {
  const [width, height, step] = [172, 70, 102];
  const boxes = {};
  STAGES.forEach((name, index) => { boxes[name] = { x: 1, y: 1 + index * step, width, height }; });
  for (const [name, stage] of Object.entries(SIDES)) boxes[name] = { x: 191, y: boxes[stage].y, width: 152, height };
  return { size: [344, 5 * step + height + 2], boxes };
}

export class LinePicture {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.isTall = window.matchMedia('(max-width: 56rem)');
    this.isTall.addEventListener('change', () => this.#build());
    this.#build();
  }

  /** @param {object} status what `/events` said */
  show(status) {
    this.status = status;
    const { rates } = status;
    const sayings = describe(status);
    for (const [name, saying] of Object.entries(sayings)) this.#fill(name, saying);
    const perSecond = [rates.messages, rates.messages, rates.decoded, rates.encoded, rates.acknowledged];
    perSecond.forEach((value, index) => {
      const isCut = index < 2 && live(status) === 0; // a rate is of the last seconds, and would still look like life
      this.labels[index].textContent = rate(isCut ? 0 : value ?? null);
      this.pipes[index].classList.toggle('flowing', (value ?? 0) > 0 && !status.stopping && !isCut);
    });
    this.pipes.at(-1).classList.toggle('blocked', status.kinesis.breaker === 'open');
    const words = [...STAGES, ...Object.keys(SIDES)].map((name) => `${TITLES[name]}: ${sayings[name].value}, ${sayings[name].note}`);
    this.description.textContent = `${words.join('. ')}.`;
  }

  #build() {
    const { size, boxes } = this.isTall.matches ? tall() : wide();
    const picture = svg('svg', { viewBox: `0 0 ${size.join(' ')}`, role: 'img', 'aria-labelledby': 'line-title', 'aria-describedby': 'line-words' });
    this.description = svg('desc', { id: 'line-words' });
    this.texts = {};
    this.labels = [];
    this.pipes = [];
    picture.append(this.description);
    STAGES.slice(1).forEach((name, index) => picture.append(...this.#pipe(boxes[STAGES[index]], boxes[name])));
    for (const [name, stage] of Object.entries(SIDES)) picture.append(this.#branch(boxes[stage], boxes[name], name === 'repair'));
    for (const [name, box] of Object.entries(boxes)) picture.append(this.#node(name, box));
    this.place.replaceChildren(picture);
    if (this.status) this.show(this.status);
  }

  #pipe(from, to) {
    const isDown = from.x === to.x;
    const d = isDown
      ? `M${from.x + 34} ${from.y + from.height}V${to.y - 7}`
      : `M${from.x + from.width} ${from.y + from.height / 2}H${to.x - 7}`;
    const tip = isDown
      ? `M${to.x + 28} ${to.y - 8}h12l-6 8z`
      : `M${to.x - 8} ${to.y + to.height / 2 - 6}v12l8 -6z`;
    const place = isDown
      ? { x: from.x + 48, y: (from.y + from.height + to.y) / 2 + 4, class: 'label start' }
      : { x: (from.x + from.width + to.x) / 2, y: 14, class: 'label middle' };
    const flow = svg('path', { d, class: 'pipe' });
    const label = svg('text', place, '');
    this.pipes.push(flow);
    this.labels.push(label);
    return [svg('path', { d, class: 'bed' }), flow, svg('path', { d: tip, class: 'tip' }), label];
  }

  #branch(stage, side, isInward) {
    const isDown = stage.x === side.x;
    const d = isDown
      ? `M${side.x + side.width / 2} ${stage.y + stage.height}V${side.y}`
      : `M${stage.x + stage.width} ${side.y + side.height / 2}H${side.x}`;
    return svg('path', { d, class: isInward ? 'branch inward' : 'branch' });
  }

  #node(name, { x, y, width, height }) {
    const group = svg('g', { class: 'node idle' });
    const lines = height > 80 ? [24, 50, 72] : [20, 42, 60];
    const mark = svg('text', { x: x + width - 14, y: y + lines[0], class: 'sign middle' }, markOf('idle'));
    const value = svg('text', { x: x + 12, y: y + lines[1], class: 'value' });
    const note = svg('text', { x: x + 12, y: y + lines[2], class: 'note' });
    group.append(
      svg('rect', { x, y, width, height, rx: 9 }),
      svg('text', { x: x + 12, y: y + lines[0], class: 'name' }, TITLES[name]),
      mark, value, note,
    );
    this.texts[name] = { group, mark, value, note };
    return group;
  }

  #fill(name, { tone, value, note }) {
    const texts = this.texts[name];
    texts.group.setAttribute('class', `node ${tone}`);
    texts.mark.textContent = markOf(tone);
    texts.value.textContent = value;
    texts.note.textContent = note;
  }
}

/** @param {object} status @returns {Object<string, Saying>} what each part of the line says of itself */
function describe(status) {
  const { kinesis, losses, channels, totals } = status;
  const line = status.details.line ?? {};
  const queued = (channels.records?.bytes ?? 0) + (channels.encoded?.bytes ?? 0);
  const asked = owed(status);
  const sent = kinesis.last_success_age_s;
  return {
    ...describeSources(status, line),
    check: {
      tone: asked > 0 ? 'warn' : 'good',
      value: asked > 0 ? `${short(asked)} missing` : 'none missing',
      note: describeChecked(status.rates, line.books ?? { synchronised: 0, all: 0 }),
    },
    encode: { tone: 'good', value: 'Avro', note: `${bytes(queued)} in queues` },
    deliver: { tone: sinkTone(status), value: sinkWord(status), note: `${bytes(heldBytes(status) - queued)} held` },
    kinesis: {
      tone: sent === null ? 'idle' : sinkTone(status),
      value: `${short(totals.records)} records`,
      note: sent === null ? 'none yet' : `last ${ago(status.at_ms - sent * 1000, status.at_ms)}`,
    },
    repair: {
      tone: asked > 0 ? 'warn' : 'good',
      value: `${short(losses.ids_repaired)} fetched`,
      note: asked > 0 ? `${count(asked)} to go` : `${plural(losses.gaps_detected, 'gap')} found`,
    },
    letters: { tone: losses.dead_letters > 0 ? 'warn' : 'good', value: short(losses.dead_letters), note: losses.dead_letters > 0 ? 'given up' : 'none given up' },
    spool: describeSpool(status),
  };
}

function describeSources(status, line) {
  const all = Object.keys(status.websocket.connections).length;
  const flowing = live(status);
  const age = status.websocket.last_message_age_s;
  const symbols = { value: plural(line.symbols ?? 0, 'symbol'), note: shorten(line.venue ?? '') };
  if (status.stopping) {
    return { venue: { tone: 'idle', ...symbols }, connections: { tone: 'idle', value: 'closed', note: 'by the stop' } };
  }
  const isWorried = status.complaints.some((each) => each.component === 'websocket');
  const tone = flowing < all ? (flowing === 0 && status.started ? 'bad' : 'warn') : all === 0 ? 'idle' : isWorried ? 'warn' : 'good';
  return {
    venue: { tone: isWorried ? 'warn' : 'good', ...symbols },
    connections: {
      tone,
      value: `${flowing} of ${all} live`,
      note: age === null ? 'no message yet' : age < 1 ? 'last message now' : `silent for ${duration(age)}`,
    },
  };
}

/** Most interim updates of a quiet bar say nothing new; where they end should not be a riddle. */
function describeChecked({ messages = 0, decoded = 0 }, books) {
  if (books.synchronised < books.all) return `${count(books.synchronised)} of ${plural(books.all, 'book')}`;
  return messages - decoded > messages / 20 + 1 ? `${rate(messages - decoded)} nothing new` : plural(books.all, 'book');
}

function sinkTone(status) {
  if (isShut(status)) return 'bad';
  if (status.kinesis.last_success_age_s === null) return 'idle';
  return status.complaints.some((each) => each.component === 'kinesis') ? 'warn' : 'good';
}

function sinkWord({ kinesis }) {
  if (kinesis.configuration_error !== null) return 'misconfigured';
  if (kinesis.breaker !== 'closed') return kinesis.breaker === 'open' ? 'breaker open' : 'probing';
  return kinesis.last_success_age_s === null ? 'waiting' : 'flowing';
}

function describeSpool(status) {
  if (status.kinesis.spool_trouble) return { tone: 'bad', value: 'disk fails', note: 'memory instead' };
  if (status.spool_limit_bytes === 0) return { tone: 'good', value: 'memory', note: 'no disk set up' };
  return {
    tone: status.spool_bytes > 0 ? 'warn' : 'good',
    value: status.spool_bytes > 0 ? bytes(status.spool_bytes) : 'empty',
    note: `${bytes(status.spool_limit_bytes)} of disk`,
  };
}

function shorten(text) {
  return text.length > 22 ? `${text.slice(0, 21)}…` : text;
}

function short(value) {
  return value < 1e4 ? count(value) : value.toLocaleString('en', { notation: 'compact', maximumFractionDigits: 1 });
}
