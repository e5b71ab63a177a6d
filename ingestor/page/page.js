'use strict';
// Listens to /events and writes what they say. Text only ever enters the page through textContent.

import { Chart } from './chart.js';
import { LinePicture } from './line.js';
import {
  ago, bytes, clock, count, duration, headline, isShut, markOf, owed, rate, toneOf, troubles, wordOf, zone,
} from './words.js';

const STALE_MS = 5000;
const ANEW_MS = 10000; // a connection that a router forgot is open to the browser, and silent for ever
const REOPEN_MS = 3000;
const LEAST_SHOWN_S = 60;
const CPU_OVER_S = 10;
const TONES = { live: 'good', down: 'bad', connecting: 'warn', subscribing: 'warn', healthy: 'good', degraded: 'warn', unhealthy: 'bad' };
const COLOURS = { good: '#1a7f43', warn: '#b26a00', bad: '#c0281e', idle: '#66707a' };

const at = (id) => document.getElementById(id);
const picture = new LinePicture(at('line'));
const charts = [
  new Chart('Rate', [{ key: 'messages_per_s', label: 'received' }, { key: 'records_per_s', label: 'acknowledged' }], rate),
  new Chart('Receipt to acknowledgement', [{ key: 'p50_s', label: 'median' }, { key: 'p99_s', label: '99 %' }], duration),
  new Chart(
    'Buffers',
    [{ key: 'channel_bytes', label: 'queues' }, { key: 'held_bytes', label: 'held' }, { key: 'spool_bytes', label: 'spool' }],
    bytes,
    { base: 1024, least: 1024 },
  ),
  new Chart('Watermark lag', [{ key: 'lag_s', label: 'worst' }], duration, { least: 1 }),
];
at('charts').append(...charts.map((chart) => chart.figure));

let names = [];
let points = [];
let windowS = 900;
let keepPoints = 451;
let heardMs = performance.now();
let heardAt = null;
let openedMs = 0;
let announced = '';
/** @type {Array<{uptime_s: number, cpu_s: number}>} */
let cpu = [];
/** @type {?EventSource} */
let source = null;

/** @param {string} tag @param {?string=} text @param {string=} className */
function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** @param {string} id @param {string[]} heads @param {Array<Array<string|Node>>} rows @param {string} nothing */
function table(id, heads, rows, nothing) {
  if (rows.length === 0) {
    const row = element('tr');
    row.append(element('td', nothing, 'quiet'));
    at(id).replaceChildren(row);
    return;
  }
  const head = element('thead');
  const headRow = element('tr');
  for (const text of heads) {
    const cell = element('th', text);
    cell.scope = 'col';
    headRow.append(cell);
  }
  head.append(headRow);
  const body = element('tbody');
  for (const cells of rows) {
    const row = element('tr');
    cells.forEach((content, index) => {
      const cell = element(index === 0 ? 'th' : 'td');
      if (index === 0) cell.scope = 'row';
      cell.append(content);
      row.append(cell);
    });
    body.append(row);
  }
  at(id).replaceChildren(head, body);
}

/** @param {string} label @param {string} value @param {string} tone */
function tile(label, value, tone) {
  const made = element('div', null, `card tile ${tone}`);
  made.append(element('dt', label), element('dd', value));
  return made;
}

/** @param {string} text @param {boolean} isMeant @returns {HTMLElement} */
function state(text, isMeant) {
  const tone = isMeant ? 'idle' : (TONES[text] ?? 'idle');
  return element('span', `${markOf(tone)} ${text}`, `state ${tone}`);
}

function time(atMs) {
  const made = element('time', clock(atMs));
  made.dateTime = new Date(atMs).toISOString();
  return made;
}

function showVerdict(status) {
  const tone = toneOf(status);
  at('verdict').className = `verdict ${tone}`;
  at('mark').textContent = markOf(tone);
  at('headline').textContent = headline(status);
  at('complaints').replaceChildren(
    ...troubles(status).map(({ component, texts, advice }) => {
      const item = element('li');
      item.append(element('b', component), ` ${texts.join('; ')}`);
      if (advice) item.append(element('span', advice, 'advice'));
      return item;
    }),
  );
  document.title = `${markOf(tone)} ${wordOf(status)} · Ingestor`;
  at('icon').href = `data:image/svg+xml,${encodeURIComponent(
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${COLOURS[tone]}"/></svg>`,
  )}`;
  const announcement = [wordOf(status), ...new Set(status.complaints.map((each) => each.component))].join(', ');
  if (announcement !== announced) {
    announced = announcement;
    at('announcement').textContent = announcement;
  }
}

function showFacts(status) {
  const { service, shard, stream } = status.details.line ?? {};
  at('who').textContent = service ? `${service.name} · ${service.environment}` : '';
  const facts = [`version ${status.version}`, `up ${duration(status.uptime_s)}`];
  if (shard) facts.push(`shard ${shard.index + 1} of ${shard.count}`);
  if (stream) facts.push(`into ${stream}`);
  at('facts').replaceChildren(...facts.map((fact) => element('span', fact)));
}

function showTiles(status) {
  const { losses, kinesis, process } = status;
  const loss = (total) => (total > 0 ? 'warn' : '');
  const worried = (component) => (status.complaints.some((each) => each.component === component) ? 'warn' : '');
  const spool = status.spool_limit_bytes > 0 ? `${bytes(status.spool_bytes)} of ${bytes(status.spool_limit_bytes)}` : 'no disk';
  at('tiles').replaceChildren(
    tile('gaps found', count(losses.gaps_detected), ''),
    tile('ids repaired', count(losses.ids_repaired), ''),
    tile('being repaired', count(owed(status)), loss(owed(status))),
    tile('holes declared', count(losses.holes_declared), loss(losses.holes_declared)),
    tile('dead letters', count(losses.dead_letters), loss(losses.dead_letters)),
    tile('spooled on disk', spool, worried('spool') || loss(status.spool_bytes)),
    tile('breaker', kinesis.configuration_error ? 'misconfigured' : kinesis.breaker.replace('_', '-'), isShut(status) ? 'bad' : ''),
    tile('reconnections', count(losses.reconnections), ''),
    tile('last heartbeat', status.heartbeat_age_s === null ? 'none yet' : ago(status.at_ms - status.heartbeat_age_s * 1000, status.at_ms), worried('heartbeat')),
    tile('memory, CPU', `${bytes(process.memory_bytes)} · ${usedCpu(status)}`, ''),
  );
}

/** @param {object} status @returns {string} the share of a core that it took over the last seconds */
function usedCpu({ uptime_s: uptimeS, process }) {
  if (process.cpu_seconds === undefined) return '–';
  if (uptimeS < (cpu.at(-1)?.uptime_s ?? 0)) cpu = []; // another process answers now
  cpu = [...cpu, { uptime_s: uptimeS, cpu_s: process.cpu_seconds }].filter((each) => uptimeS - each.uptime_s <= CPU_OVER_S);
  const elapsedS = uptimeS - cpu[0].uptime_s;
  const share = elapsedS > 0 ? (process.cpu_seconds - cpu[0].cpu_s) / elapsedS : process.cpu_seconds / Math.max(uptimeS, 1);
  return `${Math.round(share * 100)}\u00a0%`;
}

function showTables(status) {
  const nowMs = status.at_ms;
  const line = status.details.line ?? {};
  const range = (each) => (each.first === each.last ? String(each.first) : `${each.first}–\u200b${each.last}`);
  const stream = (each) => `${each.symbol} ${each.stream}`;
  table(
    'repaired',
    ['at', 'stream', 'ids'],
    [...(line.repaired ?? [])].reverse().map((each) => [time(each.repaired_ms), stream(each), range(each)]),
    'No gap had to be repaired.',
  );
  table(
    'holes',
    ['at', 'stream', 'why', 'ids'],
    [...(status.details.holes ?? [])].reverse().map((each) => [time(each.detected_ms), stream(each), each.reason.replaceAll('_', ' '), range(each)]),
    'No hole had to be declared.',
  );
  table(
    'connections',
    ['name', 'state', 'for', 'last message', 'subscribed'],
    Object.entries(status.websocket.connections).map(([name, each]) => [
      name,
      state(each.state, status.stopping),
      duration(each.lost_age_s ?? each.state_age_s),
      each.last_message_age_s === null ? 'none yet' : ago(nowMs - each.last_message_age_s * 1000, nowMs),
      `${each.acknowledged} of ${each.subscriptions}`,
    ]),
    'No connection yet.',
  );
  table(
    'streams',
    ['type', 'subscribed', 'heard', 'newest', 'quietest'],
    Object.entries(line.overview?.types ?? {}).map(([name, each]) => [
      name, count(each.subscriptions), count(each.seen), ago(each.newest_event_ms, nowMs), ago(each.oldest_event_ms, nowMs),
    ]),
    'Nothing is subscribed yet.',
  );
  const worst = line.overview?.symbols ?? [];
  const of = worst.length < (line.symbols ?? 0) ? ` (${count(worst.length)} of ${count(line.symbols)})` : '';
  at('symbols-title').textContent = `Symbols, furthest behind first${of}`;
  table(
    'symbols',
    ['symbol', 'behind', 'last trade', 'depth', 'kline'],
    worst.map((each) => [
      each.symbol, duration(each.lag_s), ...['trade', 'depth', 'kline'].map((type) => ago(each.last_event_ms[type], nowMs)),
    ]),
    'Nothing is subscribed yet.',
  );
  table(
    'latency',
    ['stage', 'median', '95 %', '99 %'],
    [
      ...Object.entries(status.venue_lag).map(([kind, each]) => [`venue to receipt, ${kind}`, each]),
      ...Object.entries(status.latency),
    ].filter(([, each]) => each.p50 !== null).map(([name, each]) => [name, duration(each.p50), duration(each.p95), duration(each.p99)]),
    'Nothing was measured yet.',
  );
}

function showStatus(status) {
  heardMs = performance.now();
  heardAt = Date.now();
  document.body.className = '';
  at('stale').hidden = true;
  if (status.point) {
    const point = named(status.point);
    if (point.uptime_s !== points.at(-1)?.uptime_s) points = [...points, point].slice(-keepPoints);
  }
  showVerdict(status);
  showFacts(status);
  picture.show(status);
  const shownS = Math.min(windowS, Math.max(LEAST_SHOWN_S, status.uptime_s)); // a young service fills its charts too
  at('charts-title').textContent = shownS < windowS ? 'Since the start' : `The last ${duration(windowS)}utes`;
  for (const chart of charts) chart.show(points, status.uptime_s, shownS);
  showTiles(status);
  showTables(status);
}

/** @param {number[]} row @returns {object} a point by the names that the history came with */
function named(row) {
  return Object.fromEntries(names.map((name, index) => [name, row[index]]));
}

function takeHistory(history) {
  names = history.names;
  windowS = history.window_s;
  keepPoints = Math.round(history.window_s / history.every_s) + 1;
  points = history.points.map(named);
}

function warnIfStale() {
  const silentMs = performance.now() - heardMs;
  if (silentMs < STALE_MS || document.hidden) return;
  document.body.className = 'stale';
  at('stale').hidden = false;
  const text = heardAt === null
    ? 'The service has not answered yet. Trying again.'
    : `No news since ${clock(heardAt)}. Everything below is from then, not from now. Trying again.`;
  if (at('stale').textContent !== text) at('stale').textContent = text;
  document.title = '? No news · Ingestor';
  if (performance.now() - openedMs >= ANEW_MS) listen();
}

function listen() {
  source?.close();
  if (document.hidden) return; // a page that nobody sees takes no place among the viewers
  openedMs = performance.now();
  source = new EventSource('/events');
  source.addEventListener('history', (event) => takeHistory(JSON.parse(event.data)));
  source.addEventListener('status', (event) => showStatus(JSON.parse(event.data)));
  source.addEventListener('error', () => {
    // A refused stream (too many viewers) is not opened again by the browser; a lost one is.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, REOPEN_MS);
  });
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden) heardMs = performance.now();
  listen();
});
at('zone').textContent = zone() === 'UTC' ? 'Times are in UTC.' : `Times are those of this device, ${zone()}; the log speaks UTC.`;
setInterval(warnIfStale, 1000);
listen();
