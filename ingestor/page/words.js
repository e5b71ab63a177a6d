'use strict';
// How numbers, times and the state of the service are put into words. Nothing here touches the page.

const UNKNOWN = '–';
const MARKS = { good: '✓', warn: '!', bad: '✕', idle: '…' };
const STATUS_TONES = { healthy: 'good', degraded: 'warn', unhealthy: 'bad' };
const LATE_S = 5; // a watermark that trails by more is worth a word
const SILENT_S = 2; // with no connection, a rate over the last seconds would still look like life
const MOST_TEXTS = 3;
const ADVICE = {
  websocket: 'It connects again by itself, and what was missed is fetched or declared. connection_lost in the log says why.',
  kinesis: 'What is received waits here, in order, and is sent by itself once Kinesis takes it. kinesis_call_failed or kinesis_misconfigured in the log says why.',
  spool: 'Records wait in memory; when that is full, the venue is not read any more. Look at the disk and its permissions.',
  heartbeat: 'Data flows, but a task that takes over would fetch more than it has to. heartbeat_failed in the log says why.',
  process: 'It lacks CPU, or is stuck. An orchestrator that asks /live replaces it.',
  configuration: 'The service runs on with what it had.',
};

/** @typedef {'good'|'warn'|'bad'|'idle'} Tone */

/** @param {Tone} tone @returns {string} a sign that says the same as the colour */
export function markOf(tone) {
  return MARKS[tone];
}

/** @param {?number} value @returns {string} such as `2,340` or `3.4` */
export function count(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const digits = Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString('en', { maximumFractionDigits: digits });
}

/** @param {?number} value @returns {string} such as `2,340/s` */
export function rate(value) {
  return value === null || value === undefined ? UNKNOWN : `${count(value)}/s`;
}

/** @param {?number} value @returns {string} such as `3.4 MiB` */
export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let step = 0;
  for (; value >= 1024 && step < units.length - 1; step += 1) value /= 1024;
  return `${count(value)} ${units[step]}`;
}

/** @param {?number} seconds @returns {string} such as `35 ms`, `2.5 s` or `3 h 12 min` */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds <= 0) return '0 s';
  if (seconds < 0.001) return `${count(seconds * 1e6)} µs`;
  if (seconds < 1) return `${count(Math.round(seconds * 1000))} ms`;
  if (seconds < 120) return `${count(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {?number} atMs @param {number} nowMs @returns {string} how long ago, by the clock of the service */
export function ago(atMs, nowMs) {
  if (!atMs) return 'none yet';
  const seconds = (nowMs - atMs) / 1000;
  return seconds < 1 ? 'now' : `${duration(seconds)} ago`;
}

/** @param {number} atMs @returns {string} the time of day here, with the date when it was not today */
export function clock(atMs) {
  const at = new Date(atMs);
  const time = at.toLocaleTimeString('en-GB');
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })} ${time}`;
}

/** @returns {string} the zone of those times, such as `UTC+02:00` */
export function zone() {
  const minutes = -new Date().getTimezoneOffset();
  if (minutes === 0) return 'UTC';
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `UTC${minutes < 0 ? '−' : '+'}${String(hours).padStart(2, '0')}:${String(rest).padStart(2, '0')}`;
}

/** @param {number} number @param {string} one @param {string=} many @returns {string} such as `1 hole`, `2 holes` */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)}\u00a0${number === 1 ? one : many}`; // a line never ends between the two
}

/** @param {object} status @returns {Tone} */
export function toneOf(status) {
  if (status.stopping) return 'warn';
  if (isStarting(status)) return 'idle';
  return STATUS_TONES[status.status];
}

/** @param {object} status @returns {string} one word for the title and the announcement */
export function wordOf(status) {
  if (status.stopping) return 'Stopping';
  if (isStarting(status)) return 'Starting';
  return status.status[0].toUpperCase() + status.status.slice(1);
}

/** @param {object} status @returns {string} what a new person should know after ten seconds */
export function headline(status) {
  if (status.stopping) return `Stopping. No new messages; ${waiting(status)}.`;
  const parts = isStarting(status)
    ? [plural(live(status), 'connection is live', 'connections are live'), delivered(status)]
    : [received(status), delivered(status), missing(status)];
  const said = parts.join(', ');
  return `${wordOf(status)}. ${said[0].toUpperCase()}${said.slice(1)}.`;
}

/** @param {object} status @returns {number} how many connections carry all that they should */
export function live(status) {
  return Object.values(status.websocket.connections).filter(isLive).length;
}

/** @param {object} connection @returns {boolean} */
export function isLive(connection) {
  return connection.state === 'live' && connection.acknowledged >= connection.subscriptions;
}

/** @param {object} status @returns {boolean} whether Kinesis takes nothing at present */
export function isShut({ kinesis }) {
  return kinesis.breaker !== 'closed' || kinesis.configuration_error !== null;
}

/** @param {object} status @returns {number} bytes that wait here, wherever */
export function heldBytes(status) {
  const queued = Object.values(status.channels).reduce((sum, channel) => sum + channel.bytes, 0);
  return queued + status.kinesis.held_bytes + status.spool_bytes;
}

/** @param {object} status @returns {number} ids that are known to be missing and asked for */
export function owed({ details }) {
  return (details.line?.repair?.trades ?? 0) + (details.line?.repair?.bars ?? 0);
}

/** @param {object} status @returns {Array<{component: string, texts: string[], advice: string}>} what is wrong, and what then */
export function troubles(status) {
  const found = new Map();
  for (const { component, text } of status.complaints) {
    found.set(component, [...(found.get(component) ?? []), text]);
  }
  const { outcome, problems = [], needs_restart: restart = [] } = status.details.configuration ?? {};
  if (outcome === 'rejected') found.set('configuration', [`what was read last is not used: ${problems[0] ?? 'it is wrong'}`]);
  else if (restart.length > 0) found.set('configuration', [`needs a restart: ${restart.join(', ')}`]);
  const isCalm = status.stopping || isStarting(status);
  return [...found].map(([component, texts]) => ({
    component,
    texts: texts.length > MOST_TEXTS ? [...texts.slice(0, MOST_TEXTS), `and ${texts.length - MOST_TEXTS} more`] : texts,
    advice: (isCalm ? '' : ADVICE[component]) ?? '',
  }));
}

function isStarting(status) {
  return !status.started && status.status !== 'unhealthy';
}

function received(status) {
  const age = status.websocket.last_message_age_s;
  if (live(status) > 0 || age === null || age < SILENT_S) return `${rate(status.rates.messages ?? 0).replace('/s', ' messages/s')} in`;
  return `nothing received for ${duration(age)}`;
}

function waiting(status) {
  const held = heldBytes(status);
  return held > 0 ? `${bytes(held)} are still being delivered` : 'all that was received is delivered';
}

function delivered(status) {
  const age = status.kinesis.last_success_age_s;
  const room = status.spool_limit_bytes > 0 && status.spool_bytes > 0 ? ` of ${bytes(status.spool_limit_bytes)}` : '';
  const held = `${bytes(heldBytes(status))}${room} wait here`;
  if (isShut(status)) return `${age === null ? 'Kinesis has taken nothing yet' : `Kinesis has taken nothing for ${duration(age)}`} (${held})`;
  if (age === null) return 'nothing delivered yet';
  if (status.watermark_lag_s > LATE_S) return `acknowledged up to ${duration(status.watermark_lag_s)} ago`;
  return live(status) > 0 ? 'all acknowledged' : 'all that came is acknowledged';
}

function missing(status) {
  const { losses, details } = status;
  const parts = [];
  if (owed(status) > 0) parts.push(`${plural(owed(status), 'missing id')} being fetched`);
  if (losses.holes_declared > 0) {
    const newest = details.holes?.at(-1)?.detected_ms;
    parts.push(`${plural(losses.holes_declared, 'hole')} declared${newest ? ` (the last ${ago(newest, status.at_ms)})` : ''}`);
  }
  if (losses.dead_letters > 0) parts.push(plural(losses.dead_letters, 'dead letter'));
  if (live(status) === 0) parts.push('what the venue sends now is fetched or declared afterwards');
  return parts.length > 0 ? parts.join(', ') : 'nothing missing';
}
