'use strict';
// A line chart over time in inline SVG: read with the eye, a pointer or the arrow keys.

import { duration } from './words.js';

const SVG = 'http://www.w3.org/2000/svg';
const HEIGHT = 150;
const EDGE = { top: 8, right: 8, bottom: 20, left: 62 };
const MARKS = [1, 2 / 3, 1 / 3, 0]; // of the window, where the time is written

/** @typedef {{key: string, label: string}} Series */

/** @param {string} tag @param {Object<string, string|number>} attributes @param {string=} text */
export function svg(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** @param {number} most @param {number} base 10, or 1024 for bytes @returns {number} a round number at or above it */
function roundUp(most, base) {
  if (most <= 0) return 1;
  const unit = base ** Math.floor(Math.log(most) / Math.log(base));
  const steps = base === 10 ? [1, 2, 4, 5, 8, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  return unit * steps.find((step) => step * unit >= most);
}

export class Chart {
  /**
   * @param {string} title
   * @param {Series[]} series
   * @param {(value: ?number) => string} format
   * @param {{base?: number, least?: number}} scale `least` is the smallest upper end of the axis
   */
  constructor(title, series, format, { base = 10, least = 0 } = {}) {
    this.title = title;
    this.series = series;
    this.format = format;
    this.base = base;
    this.least = least;
    this.points = [];
    this.nowS = 0;
    this.windowS = 900;
    this.cursor = null; // index into points; null follows the newest
    this.figure = document.createElement('figure');
    this.figure.className = 'card chart';
    this.#furnish();
    new ResizeObserver(() => this.#draw()).observe(this.figure);
  }

  /** @param {object[]} points oldest first, by the names of the series @param {number} nowS @param {number} windowS */
  show(points, nowS, windowS) {
    if (this.cursor !== null) {
      const at = this.points[this.cursor]?.uptime_s;
      const index = points.findIndex((point) => point.uptime_s === at);
      this.cursor = index < 0 ? null : index;
    }
    Object.assign(this, { points, nowS, windowS });
    this.#draw();
  }

  #furnish() {
    const caption = document.createElement('figcaption');
    const name = document.createElement('h3');
    name.textContent = this.title;
    this.moment = document.createElement('span');
    this.moment.className = 'moment';
    caption.append(name, this.moment);
    this.legend = document.createElement('ul');
    this.legend.className = 'legend';
    this.values = this.series.map(({ label }, index) => {
      const entry = document.createElement('li');
      const swatch = svg('svg', { width: 22, height: 8, class: 'swatch', 'aria-hidden': 'true' });
      swatch.append(svg('path', { d: 'M1 4H21', class: `series s${index}` }));
      const value = document.createElement('b');
      entry.append(swatch, `${label} `, value);
      this.legend.append(entry);
      return value;
    });
    this.canvas = svg('svg', { class: 'canvas', tabindex: 0, role: 'img', 'aria-describedby': 'charts-hint' });
    this.canvas.addEventListener('keydown', (event) => this.#steer(event));
    this.canvas.addEventListener('pointermove', (event) => this.#pointAt(event.offsetX));
    this.canvas.addEventListener('pointerleave', () => this.#moveTo(null));
    this.canvas.addEventListener('blur', () => this.#moveTo(null));
    this.said = document.createElement('p');
    this.said.className = 'unseen';
    this.said.setAttribute('role', 'status');
    this.figure.append(caption, this.legend, this.canvas, this.said);
  }

  #steer(event) {
    const last = this.points.length - 1;
    const from = this.cursor ?? last;
    const to = {
      ArrowLeft: Math.max(0, from - (event.shiftKey ? 30 : 5)),
      ArrowRight: Math.min(last, from + (event.shiftKey ? 30 : 5)),
      Home: 0,
      End: last,
      Escape: null,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.#moveTo(to);
    this.said.textContent = this.#sentence();
  }

  #pointAt(offsetX) {
    if (this.points.length === 0) return;
    const ageS = (1 - (offsetX - EDGE.left) / this.#innerWidth()) * this.windowS;
    let nearest = 0;
    this.points.forEach((point, index) => {
      const distance = Math.abs(this.nowS - point.uptime_s - ageS);
      if (distance < Math.abs(this.nowS - this.points[nearest].uptime_s - ageS)) nearest = index;
    });
    this.#moveTo(nearest);
  }

  #moveTo(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.#draw();
  }

  #innerWidth() {
    return Math.max(60, this.canvas.clientWidth - EDGE.left - EDGE.right);
  }

  #sentence() {
    const point = this.points[this.cursor ?? this.points.length - 1];
    const values = this.series.map(({ key, label }) => `${label} ${this.format(point?.[key])}`).join(', ');
    return `${this.cursor === null || !point ? 'now' : `${duration(this.nowS - point.uptime_s)} ago`}: ${values}`;
  }

  #draw() {
    const width = this.#innerWidth();
    const high = HEIGHT - EDGE.top - EDGE.bottom;
    const most = Math.max(this.least, ...this.points.flatMap((point) => this.series.map(({ key }) => point[key] ?? 0)));
    const top = roundUp(most, this.base);
    const x = (point) => EDGE.left + width * (1 - (this.nowS - point.uptime_s) / this.windowS);
    const y = (value) => EDGE.top + high * (1 - value / top);
    this.canvas.setAttribute('viewBox', `0 0 ${width + EDGE.left + EDGE.right} ${HEIGHT}`);
    this.canvas.setAttribute('aria-label', `${this.title}, chart. ${this.#sentence()}`);
    this.canvas.replaceChildren(...this.#grid(width, top, y), ...this.#paths(x, y), ...this.#ruler(x, y));
    const point = this.points[this.cursor ?? this.points.length - 1];
    this.values.forEach((value, index) => {
      value.textContent = this.format(point?.[this.series[index].key]);
    });
    this.moment.textContent = this.cursor === null || !point ? '' : `${duration(this.nowS - point.uptime_s)} ago`;
  }

  #grid(width, top, y) {
    const rows = [0, top / 2, top].flatMap((value) => [
      svg('path', { d: `M${EDGE.left} ${y(value)}h${width}`, class: 'grid' }),
      svg('text', { x: EDGE.left - 6, y: y(value) + 4, class: 'tick end' }, this.format(value)),
    ]);
    const columns = MARKS.map((share, index) => {
      const at = EDGE.left + width * (1 - share);
      const align = index === 0 ? 'start' : share === 0 ? 'end' : 'middle';
      return svg('text', { x: at, y: HEIGHT - 4, class: `tick ${align}` }, share ? `−${duration(Math.round(share * this.windowS))}` : 'now');
    });
    return [...rows, ...columns];
  }

  #paths(x, y) {
    return this.series.map(({ key }, index) => {
      const isKnown = (point) => point !== undefined && point[key] !== null && this.nowS - point.uptime_s <= this.windowS;
      const steps = this.points.map((point, place) => {
        if (!isKnown(point)) return ''; // the pen is lifted where nothing is known
        const isFirst = !isKnown(this.points[place - 1]);
        const step = `${isFirst ? 'M' : 'L'}${x(point).toFixed(1)} ${y(point[key]).toFixed(1)}`;
        return isFirst && !isKnown(this.points[place + 1]) ? `${step}m-3 0h6` : step; // alone, and seen all the same
      });
      return svg('path', { d: steps.join('') || 'M0 0', class: `series s${index}` });
    });
  }

  #ruler(x, y) {
    const point = this.cursor === null ? undefined : this.points[this.cursor];
    if (point === undefined) return [];
    const dots = this.series.flatMap(({ key }, index) =>
      point[key] === null ? [] : [svg('circle', { cx: x(point), cy: y(point[key]), r: 3.5, class: `dot s${index}` })],
    );
    return [svg('path', { d: `M${x(point)} ${EDGE.top}V${HEIGHT - EDGE.bottom}`, class: 'ruler' }), ...dots];
  }
}
