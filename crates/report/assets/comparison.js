'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const at = id => document.getElementById(id);
// Names come from models: they only ever become text.
function make(tag, attrs, ...children) {
  const svg = ['svg', 'g', 'rect', 'line', 'text', 'title'].includes(tag) && (!attrs || !attrs.html);
  const el = svg ? document.createElementNS('http:' + '//www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attrs || {})) el.setAttribute(key, value);
  el.append(...children.map(c => c instanceof Node ? c : String(c)));
  return el;
}
const dash = '–';
const db = x => x === null || x === undefined ? dash : x.toFixed(1);
const share = x => x === null || x === undefined ? dash : (100 * x).toFixed(x && x < 0.001 ? 4 : 2) + ' %';
const number = x => x === null || x === undefined ? dash : x === 0 ? '0' : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(2) : x.toPrecision(4);
const pair = p => p ? (p[0] === p[1] ? number(p[0]) : number(p[0]) + ' to ' + number(p[1])) : dash;
const plain = text => String(text).replaceAll('_', ' ');

function table(host, columns, rows, options = {}) {
  const body = make('tbody'), head = make('tr');
  let sorted = -1, up = false;
  const draw = list => {
    body.replaceChildren(...list.map(row => {
      const tr = make('tr', { 'data-row': row.name });
      for (const c of columns) {
        const td = make('td', { class: c.text ? 'name' : 'n' });
        if (c.open) {
          const button = make('button', { type: 'button' }, c.show(row));
          button.addEventListener('click', () => c.open(row));
          td.append(button);
        } else td.append(c.show(row));
        tr.append(td);
      }
      return tr;
    }));
  };
  let shown = rows.slice();
  const order = () => {
    const list = shown.slice();
    if (sorted >= 0) {
      const key = columns[sorted].key;
      // A dash stands for no error: it sorts behind every number.
      const value = row => { const x = key(row); return x === null || x === undefined ? Infinity : x; };
      list.sort((a, b) => { const x = value(a), y = value(b);
        return typeof x === 'string' || typeof y === 'string' ? String(x).localeCompare(String(y), undefined, { numeric: true }) : x < y ? -1 : x > y ? 1 : 0; });
      if (!up) list.reverse();
    }
    draw(list);
  };
  columns.forEach((c, i) => {
    const button = make('button', { type: 'button', title: 'sort by ' + c.label }, c.label);
    const th = make('th', { class: c.text ? '' : 'n', scope: 'col' }, button);
    button.addEventListener('click', () => {
      up = sorted === i ? !up : true; sorted = i;
      for (const other of head.children) other.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      order();
    });
    head.append(th);
  });
  host.replaceChildren(make('table', options.id ? { id: options.id } : null, make('thead', null, head), body));
  order();
  return list => { shown = list; order(); };
}

// Outputs.
table(at('outputs'), [
  { label: 'output', text: true, show: o => o.name, key: o => o.name },
  { label: 'dB', show: o => db(o.sqnr_db), key: o => o.sqnr_db },
  { label: 'max error', show: o => number(o.max_error), key: o => o.max_error },
  { label: 'cosine', show: o => o.cosine === null ? dash : o.cosine.toFixed(5), key: o => o.cosine },
  { label: 'KL', show: o => number(o.kl), key: o => o.kl },
  { label: 'agreement', show: o => share(o.agreement), key: o => o.agreement },
  { label: 'in top 5', show: o => share(o.top5_agreement), key: o => o.top5_agreement },
], data.outputs);

function advice(list) {
  return list.map(a => {
    const p = make('p', { class: 'advice' }, make('b', null, plain(a.cause)), ': ' + a.text + '.');
    if (a.option) p.append(' Would help: ', make('code', null, a.option));
    return p;
  });
}
at('remarks').append(...advice(data.remarks));

// One tensor.
let bars = new Map();
function open(row) {
  const fact = (label, value) => [make('dt', null, label), make('dd', null, value)];
  const facts = [
    ['rank by own error', row.rank], ['kind', row.kind], ['made or taken by', row.node + ' (' + row.op_type + ')'],
    ['in the quantized model', row.quantized_name], ['matched by', row.matched_by], ['integers', row.dtype || dash],
    ['own error, dB', db(row.own_sqnr_db)], ['of that rounding, dB', db(row.rounding_sqnr_db)],
    ['own, channels equally loud, dB', db(row.channel_sqnr_db)], ['all error so far, dB', db(row.sqnr_db)],
    ['mean squared error', number(row.mse)], ['mean absolute error', number(row.mae)], ['max error', number(row.max_error)],
    ['cosine', row.cosine === null ? dash : row.cosine.toFixed(6)], ['clipped', share(row.clipped)], ['integers used', share(row.codes_used)],
    ['float values', pair(row.min_max)], ['range of the integers', pair(row.range)], ['scale', pair(row.scale)],
  ];
  const list = make('dl');
  for (const [label, value] of facts) list.append(make('div', null, ...fact(label, value)));
  at('detail').replaceChildren(make('h3', null, row.name), ...advice(row.advice), list);
  for (const [name, bar] of bars) name === row.name ? bar.setAttribute('aria-current', 'true') : bar.removeAttribute('aria-current');
  for (const tr of document.querySelectorAll('#tensors tbody tr')) tr.setAttribute('aria-selected', String(tr.dataset.row === row.name));
}

// Error along the graph: noise as a share of the signal, so that higher is worse.
const WIDTH = 14, HEIGHT = 180;
let zoom = 1;
function chart() {
  const rows = data.tensors.slice().sort((a, b) => a.order - b.order || a.name.localeCompare(b.name));
  const worst = x => x === null || x === undefined ? null : Math.max(0, Math.min(60, x));
  const height = x => x === null ? 0 : HEIGHT * (60 - x) / 60;
  const w = WIDTH * zoom;
  const svg = make('svg', { width: 40 + rows.length * w, height: HEIGHT + 20, role: 'group', 'aria-label': 'error of each tensor, in the order of the graph' });
  for (const level of [0, 20, 40, 60]) {
    const y = 10 + HEIGHT * level / 60;
    svg.append(make('line', { x1: 34, x2: 40 + rows.length * w, y1: y, y2: y }), make('text', { x: 0, y: y + 4 }, level + ' dB'));
  }
  bars = new Map();
  rows.forEach((row, i) => {
    const x = 38 + i * w, all = height(worst(row.sqnr_db)), own = height(worst(row.own_sqnr_db));
    const label = row.name + ': own ' + db(row.own_sqnr_db) + ' dB, all ' + db(row.sqnr_db) + ' dB';
    const g = make('g', { class: 'bar', tabindex: 0, role: 'button', 'aria-label': label, 'data-name': row.name }, make('title', null, label),
      make('rect', { class: 'all', x: x + 1, y: 10 + HEIGHT - all, width: Math.max(1, w * .4), height: all }),
      make('rect', { class: 'own', x: x + 1 + w * .45, y: 10 + HEIGHT - own, width: Math.max(1, w * .4), height: own }),
      make('rect', { class: 'hit', x: x, y: 10, width: w, height: HEIGHT }));
    g.addEventListener('click', () => open(row));
    g.addEventListener('keydown', e => {
      if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); open(row); }
      const to = e.key === 'ArrowRight' ? g.nextElementSibling : e.key === 'ArrowLeft' ? g.previousElementSibling : null;
      if (to && to.classList.contains('bar')) { e.preventDefault(); to.focus(); }
    });
    bars.set(row.name, g);
    svg.append(g);
  });
  at('chart').replaceChildren(svg);
}
at('in').addEventListener('click', () => { zoom = Math.min(4, zoom * 1.5); chart(); });
at('out').addEventListener('click', () => { zoom = Math.max(.2, zoom / 1.5); chart(); });
chart();

// The table.
const show = table(at('rows'), [
  { label: 'rank', show: t => t.rank, key: t => t.rank },
  { label: 'tensor', text: true, show: t => t.name, key: t => t.name, open },
  { label: 'kind', show: t => t.kind, key: t => t.kind },
  { label: 'operator', show: t => t.op_type, key: t => t.op_type },
  { label: 'own dB', show: t => db(t.own_sqnr_db), key: t => t.own_sqnr_db },
  { label: 'dB', show: t => db(t.sqnr_db), key: t => t.sqnr_db },
  { label: 'max error', show: t => number(t.max_error), key: t => t.max_error },
  { label: 'clipped', show: t => share(t.clipped), key: t => t.clipped },
  { label: 'integers used', show: t => share(t.codes_used), key: t => t.codes_used },
  { label: 'advice', text: true, show: t => t.advice.map(a => plain(a.cause)).join(', '), key: t => t.advice.length },
], data.tensors, { id: 'tensors' });
function filter() {
  const word = at('search').value.toLowerCase(), kind = at('kind').value;
  const list = data.tensors.filter(t => (!kind || (kind === 'advice' ? t.advice.length : t.kind === kind)) &&
    [t.name, t.op_type, t.node, t.dtype || ''].some(text => text.toLowerCase().includes(word)));
  show(list);
  at('count').textContent = list.length + ' of ' + data.tensors.length;
}
at('search').addEventListener('input', filter);
at('kind').addEventListener('change', filter);
filter();
if (data.tensors.length) open(data.tensors[0]);

table(at('unmatched'), [
  { label: 'value of the float model', text: true, show: u => u.name, key: u => u.name },
  { label: 'why it has no counterpart', text: true, show: u => u.reason, key: u => u.reason },
], data.unmatched);
document.documentElement.dataset.ready = 'true';
