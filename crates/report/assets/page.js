'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const at = id => document.getElementById(id);
const isNothing = x => x === null || x === undefined;
// Names come from models: they only ever become text.
const SVG = new Set(['svg', 'g', 'rect', 'line', 'text', 'title', 'path', 'circle', 'defs', 'marker']);
function make(tag, attrs, ...children) {
  const el = SVG.has(tag) ? document.createElementNS('http:' + '//www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attrs || {})) if (!isNothing(value)) el.setAttribute(key, value);
  el.append(...children.filter(c => !isNothing(c)).map(c => c instanceof Node ? c : String(c)));
  return el;
}
const button = (label, action, attrs) => {
  const b = make('button', { type: 'button', ...attrs }, label);
  b.addEventListener('click', action);
  return b;
};

// Figures as text.
const dash = '–';
const db = x => isNothing(x) ? dash : x.toFixed(1);
const share = x => isNothing(x) ? dash : (100 * x).toFixed(x && Math.abs(x) < 0.001 ? 4 : 2) + ' %';
const signed = x => (x > 0 ? '+' : x < 0 ? '\u2212' : '') + (100 * Math.abs(x)).toFixed(2) + ' %';
const number = x => isNothing(x) ? dash : x === 0 ? '0' : Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5 ? x.toExponential(2) : String(+x.toPrecision(4));
const pair = p => p ? (p[0] === p[1] ? number(p[0]) : number(p[0]) + ' to ' + number(p[1])) : dash;
const plain = text => String(text).replaceAll('_', ' ');
const bytes = n => n >= 1e9 ? (n / 1e9).toFixed(2) + ' GB' : n >= 1e6 ? (n / 1e6).toFixed(2) + ' MB' : (n / 1e3).toFixed(1) + ' kB';
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A table that sorts by any column, and shows the rows it is told to.
function table(host, columns, rows, options = {}) {
  const body = make('tbody'), head = make('tr');
  let sorted = -1, up = false, shown = rows.slice();
  const draw = () => {
    const list = shown.slice();
    if (sorted >= 0) {
      const key = columns[sorted].key;
      const value = row => { const x = key(row); return isNothing(x) ? Infinity : x; };
      list.sort((a, b) => {
        const x = value(a), y = value(b);
        return typeof x === 'string' || typeof y === 'string' ? String(x).localeCompare(String(y), undefined, { numeric: true }) : x < y ? -1 : x > y ? 1 : 0;
      });
      if (!up) list.reverse();
    }
    body.replaceChildren(...list.map(row => {
      const tr = make('tr', { 'data-row': options.id_of ? options.id_of(row) : row.name });
      for (const c of columns) {
        const td = make('td', { class: c.text ? c.text : 'n' });
        td.append(c.open ? button(c.show(row), () => c.open(row)) : c.show(row));
        tr.append(td);
      }
      return tr;
    }));
  };
  columns.forEach((c, i) => {
    const th = make('th', { class: c.text ? null : 'n', scope: 'col' });
    th.append(button(c.label, () => {
      up = sorted === i ? !up : true; sorted = i;
      for (const other of head.children) other.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      draw();
    }, { title: c.title || 'sort by ' + c.label }));
    head.append(th);
  });
  host.replaceChildren(make('table', { id: options.id }, make('thead', null, head), body));
  draw();
  return list => { shown = list; draw(); };
}

const advice = list => list.map(a => {
  const p = make('p', { class: 'advice' }, make('b', null, plain(a.cause)), ': ' + a.text + '.');
  if (a.option) p.append(' Would help: ', make('code', null, a.option));
  return p;
});
const facts = list => make('dl', null, ...list.filter(([, value]) => !isNothing(value) && value !== '' && value !== dash)
  .map(([label, value]) => make('div', null, make('dt', null, label), make('dd', null, value))));

// Charts: drawn again when the colours or the width change.
const charts = new Set();
function chart(host, draw) {
  const one = { host, plot: null, width: 0 };
  one.draw = () => {
    if (!host.isConnected) { if (one.plot) one.plot.destroy(); charts.delete(one); return; }
    const width = Math.floor(host.clientWidth);
    if (width < 40) return;
    if (one.plot) one.plot.destroy();
    one.width = width;
    one.plot = draw(width);
  };
  charts.add(one);
  requestAnimationFrame(one.draw);
}
const redraw = force => { for (const c of [...charts]) if (force || Math.floor(c.host.clientWidth) !== c.width) c.draw(); };
addEventListener('resize', () => redraw(false));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { redraw(true); heats.forEach(draw => draw()); });
const axis = (label, more) => ({ stroke: css('--muted'), grid: { stroke: css('--line'), width: 1 }, ticks: { stroke: css('--line') }, label, labelSize: label ? 20 : 0, labelFont: '12px system-ui,sans-serif', font: '12px system-ui,sans-serif', ...more });
const LINES = ['#2463d6', '#d9480f', '#0b7a4b', '#9c36b5', '#b08900', '#c2255c'];
const LINES_DARK = ['#86b0ff', '#ffa066', '#5fd39b', '#d8a1ec', '#e6c35a', '#ff8fb0'];
const lines = () => matchMedia('(prefers-color-scheme: dark)').matches ? LINES_DARK : LINES;

// Values of an activation, with every calibrator's range.
function histogram(profile) {
  const host = make('div', { class: 'plot', role: 'img', 'aria-label': 'histogram of ' + profile.n + ' values from ' + number(profile.lo) + ' to ' + number(profile.hi) });
  const n = profile.counts.length, step = (profile.hi - profile.lo) / n;
  const xs = profile.counts.map((_, i) => profile.lo + (i + 0.5) * step);
  const ys = profile.counts.map(c => c > 0 ? c : null);
  chart(host, width => {
    const colors = lines();
    return new vendor.uPlot({
      width, height: 190, legend: { show: false }, cursor: { show: false }, select: { show: false },
      padding: [8, 10, 0, 0],
      scales: { x: { time: false, range: [profile.lo - step, profile.hi + step] }, y: { distr: 3, range: (u, lo, hi) => [0.5, Math.max(2, hi * 2)] } },
      axes: [axis('value'), axis('how many', { size: 58, grid: { show: false }, ticks: { show: false }, values: (u, list) => list.map(v => v >= 1 && Math.log10(v) % 1 === 0 ? (v >= 1e6 ? v / 1e6 + 'M' : v >= 1e3 ? v / 1e3 + 'k' : v) : '') })],
      series: [{}, { paths: vendor.uPlot.paths.bars({ size: [1, 100], gap: 0 }), fill: css('--bar'), stroke: css('--bar'), width: 0, points: { show: false } }],
      hooks: { draw: [u => {
        const { ctx, bbox } = u;
        ctx.save();
        profile.thresholds.forEach((t, i) => {
          ctx.strokeStyle = colors[i % colors.length];
          ctx.lineWidth = (t.used ? 3 : 1.6) * devicePixelRatio;
          ctx.setLineDash(t.used ? [] : [5 * devicePixelRatio, 3 * devicePixelRatio]);
          for (const x of [t.min, t.max]) {
            const px = u.valToPos(x, 'x', true);
            if (px < bbox.left - 1 || px > bbox.left + bbox.width + 1) continue;
            ctx.beginPath(); ctx.moveTo(px, bbox.top); ctx.lineTo(px, bbox.top + bbox.height); ctx.stroke();
          }
        });
        ctx.restore();
      }] },
    }, [xs, ys], host);
  });
  const key = make('div', { class: 'swatches' }, ...profile.thresholds.map((t, i) =>
    make('span', null, make('span', { class: 'keyline', style: 'border-color:' + lines()[i % 6] + (t.used ? '' : ';border-top-style:dashed') }), plain(t.calibrator) + ' ' + number(t.min) + ' to ' + number(t.max) + (t.used ? ' (used)' : '') + ' ')));
  const zero = profile.zeros ? '; ' + share(profile.zeros) + ' are exactly 0 and not drawn' : '';
  return make('figure', null, host, key, make('figcaption', null, 'Values over ' + profile.samples + ' samples, on a logarithmic scale' + zero + '. Lines: where each calibrator would clip.'));
}

// A weight, a channel a row: how its values lie, and the range of its integers.
const heats = new Set();
function heat(weight) {
  const rows = weight.rows, n = rows.length, bins = weight.bins;
  const canvas = make('canvas', { class: 'heat', width: bins * 6, height: Math.max(n * (n > 96 ? 2 : n > 24 ? 4 : 10), 24), role: 'img', 'aria-label': weight.channels + ' channels of ' + weight.name });
  const draw = () => {
    if (!canvas.isConnected && canvas.dataset.drawn) { heats.delete(draw); return; }
    canvas.dataset.drawn = 'true';
    const ctx = canvas.getContext('2d'), w = canvas.width / bins, h = canvas.height / n;
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    ctx.fillStyle = css('--accent');
    rows.forEach((row, r) => {
      for (let b = 0; b < bins; b++) {
        const level = row.counts.charCodeAt(b) - 48;
        if (level <= 0) continue;
        ctx.globalAlpha = 0.12 + 0.88 * level / 9;
        ctx.fillRect(b * w, r * h, w, h);
      }
    });
    ctx.globalAlpha = 1;
    ctx.fillStyle = css('--bad');
    const to = x => (x - weight.lo) / (weight.hi - weight.lo) * canvas.width;
    rows.forEach((row, r) => { if (row.range) for (const x of row.range) ctx.fillRect(Math.max(0, Math.min(canvas.width - 2, to(x) - 1)), r * h, 2, h); });
  };
  heats.add(draw);
  requestAnimationFrame(draw);
  const per = weight.channels === n ? 'a row each' : Math.ceil(weight.channels / n) + ' a row';
  return make('figure', null, canvas, make('figcaption', null,
    weight.channels + (weight.channels === 1 ? ' channel' : ' channels') + ', ' + per + '; values from ' + number(weight.lo) + ' to ' + number(weight.hi) + '. Red: the ends of the integers\u2019 range.'));
}

// What is known of each layer, joined.
const rows = (data.comparison || {}).tensors || [];
const by = (list, key) => { const map = new Map(); for (const x of list) { const k = key(x); if (!map.has(k)) map.set(k, []); map.get(k).push(x); } return map; };
const tensorsOf = by(rows, t => t.node), byName = new Map(rows.map(t => [t.name, t]));
const sensitive = new Map(((data.sensitivity || {}).layers || []).map(l => [l.node, l]));
const profiles = data.profiles || {}, weights = data.weights || {}, plans = data.tensors || {};
const totalMacs = (data.nodes || []).reduce((sum, n) => sum + (n.macs || 0), 0);
const layers = (data.nodes || []).map((node, i) => {
  const own = tensorsOf.get(node.name) || [];
  const out = own.find(t => t.kind === 'activation' && t.point === 'after') || own.find(t => t.kind === 'activation');
  const weight = own.filter(t => t.kind === 'weight').sort((a, b) => (isNothing(a.own_sqnr_db) ? Infinity : a.own_sqnr_db) - (isNothing(b.own_sqnr_db) ? Infinity : b.own_sqnr_db))[0];
  const arriving = node.inputs.map(name => byName.get(name)).filter(t => t && !isNothing(t.sqnr_db)).map(t => t.sqnr_db);
  return { ...node, i, rows: own, out, weight, sensitivity: sensitive.get(node.name),
    arrives: arriving.length ? Math.min(...arriving) : null, own_db: out ? out.own_sqnr_db : null, leaves: out ? out.sqnr_db : null,
    // A weight's advice is repeated at the output it spoils: once is enough.
    advice: own.flatMap(t => t.advice).filter((a, i, all) => !all.some((b, j) => j !== i && a.text !== b.text && a.text.endsWith(': ' + b.text))) };
});
const layerOf = new Map(layers.map(l => [l.name, l]));
// A tensor's layer, for those whose node has none of its own (inputs).
const ownerOf = name => layers.find(l => l.outputs.includes(name)) || layers.find(l => l.inputs.includes(name));

function tensorFigures(t) {
  return facts([
    ['kind', t.kind], ['integers', t.dtype || 'none: float'], ['own error', isNothing(t.own_sqnr_db) ? 'none' : db(t.own_sqnr_db) + ' dB'], ['of that, rounding', isNothing(t.rounding_sqnr_db) ? null : db(t.rounding_sqnr_db) + ' dB'],
    ['own, channels equally loud', isNothing(t.channel_sqnr_db) ? null : db(t.channel_sqnr_db) + ' dB'], ['all error so far', isNothing(t.sqnr_db) ? 'none' : db(t.sqnr_db) + ' dB'],
    ['mean squared error', number(t.mse)], ['mean absolute error', number(t.mae)], ['largest error', number(t.max_error)], ['cosine', isNothing(t.cosine) ? dash : t.cosine.toFixed(6)],
    ['clipped', share(t.clipped)], ['codes used', share(t.codes_used)], ['float values', pair(t.min_max)], ['range of the integers', pair(t.range)], ['scale', pair(t.scale)],
    ['in the quantized model', t.quantized_name], ['matched by', t.matched_by],
  ]);
}

// A layer, with all that is known of it.
function describe(layer) {
  const out = [make('h2', { tabindex: -1 }, layer.name)];
  const line = make('p', null, make('span', { class: 'chip ' + layer.status }, layer.status), ' ', layer.op_type);
  if (layer.shape) line.append(' \u2192 ' + layer.shape);
  if (layer.macs && totalMacs) line.append(' \u00b7 ' + share(layer.macs / totalMacs) + ' of the multiplications');
  out.push(line);
  if (layer.reason) out.push(make('p', null, 'Why: ' + layer.reason + '.'));
  if (layer.out || !isNothing(layer.arrives)) out.push(make('div', { class: 'flow', role: 'group', 'aria-label': 'signal to noise, in dB' },
    ...[['arrives with', layer.arrives], ['its own error', layer.own_db], ['leaves with', layer.leaves]].map(([label, x]) => make('div', null, make('span', null, label), make('b', null, isNothing(x) ? 'no error' : db(x) + ' dB')))));
  out.push(...advice(layer.advice));
  const s = layer.sensitivity;
  if (s) out.push(make('p', null, 'Sensitivity: rank ' + s.rank + ' of ' + sensitive.size + '. Quantized alone, the outputs lose ' + number(s.alone.loss) + ' (' + db(s.alone.sqnr_db) + ' dB); left in float alone, ' + number(s.gain) + ' of ' + number(data.sensitivity.quantized.loss) + ' is saved.'));
  const shown = new Set();
  const tensor = (name, kind) => {
    if (shown.has(name)) return;
    shown.add(name);
    const row = byName.get(name), plan = plans[name], profile = profiles[name], weight = weights[name];
    if (!row && !plan && !profile && !weight) return;
    out.push(make('h3', null, kind + ': ' + name));
    if (plan) out.push(make('p', { class: 'muted' }, plan.dtype + ', scale ' + plan.scale + ', zero point ' + plan.zero_point + ' \u2014 ' + plan.why));
    if (profile) out.push(histogram(profile));
    if (weight) out.push(heat(weight));
    if (row) out.push(tensorFigures(row));
  };
  layer.outputs.forEach(name => tensor(name, 'Output'));
  // A clamp that the range took over: what it makes is what is quantized here.
  layers.filter(l => l.status === 'absorbed' && l.inputs.some(name => layer.outputs.includes(name))).forEach(l => l.outputs.forEach(name => tensor(name, 'Output, after the ' + l.op_type + ' in its range')));
  layer.rows.filter(t => t.kind === 'activation').forEach(t => tensor(t.name, 'Output'));
  layer.constants.forEach(name => tensor(name, (byName.get(name) || {}).kind === 'bias' ? 'Bias' : 'Weight'));
  layer.inputs.forEach(name => { if (!ownerOf(name) || !layers.some(l => l.outputs.includes(name))) tensor(name, 'Input'); });
  return out;
}

let current = null;
function select(layer, from) {
  current = layer;
  for (const host of document.querySelectorAll('[data-detail]')) host.replaceChildren(...(host.closest('[hidden]') ? [] : describe(layer)));
  for (const tr of document.querySelectorAll('#layers-table tbody tr')) tr.setAttribute('aria-selected', String(tr.dataset.row === layer.name));
  for (const bar of document.querySelectorAll('.strip g.bar')) bar.dataset.name === layer.name ? bar.setAttribute('aria-current', 'true') : bar.removeAttribute('aria-current');
  if (graph) graph.mark(layer.name, from !== 'graph');
  if (from === 'table') { const panel = document.querySelector('#view-layers [data-detail]'); panel.scrollIntoView({ block: 'nearest' }); }
}

// Summary.
function summary(host) {
  const variants = data.variants || [], [a, b] = variants;
  const card = (value, label, tone) => make('div', { class: 'card' }, make('b', { class: tone }, value), make('span', null, label));
  const cards = make('div', { class: 'cards' });
  if (a && b) cards.append(card((a.bytes / b.bytes).toFixed(2) + '\u00d7 smaller', bytes(a.bytes) + ' \u2192 ' + bytes(b.bytes)));
  if (a && b && !isNothing(a.top1) && !isNothing(b.top1)) {
    const d = data.difference;
    cards.append(card(share(b.top1), 'top-1, float ' + share(a.top1) + (d ? '; change ' + signed(-d.drop) + ' (95 %: ' + signed(-d.interval[1]) + ' to ' + signed(-d.interval[0]) + ')' : '')));
  }
  const times = v => new Map((v.latencies || []).map(l => [l.runtime + ' ' + l.threads, l]));
  const fastest = v => (v.latencies || []).slice().sort((x, y) => x.median_ms - y.median_ms)[0];
  // The same runtime for both where there is one; else the fastest of each.
  const same = a && b ? [...times(b).keys()].filter(l => times(a).has(l)).map(l => [times(a).get(l), times(b).get(l)]).sort((x, y) => x[1].median_ms - y[1].median_ms)[0] : null;
  const timed = same || (a && b && fastest(a) && fastest(b) ? [fastest(a), fastest(b)] : null);
  if (timed) cards.append(card((timed[0].median_ms / timed[1].median_ms).toFixed(2) + '\u00d7 as fast', timed[0].median_ms.toFixed(2) + ' ms \u2192 ' + timed[1].median_ms.toFixed(2) + ' ms (' + [...new Set(timed.map(t => t.runtime))].join(', then ') + ')'));
  if (totalMacs) { const q = layers.filter(l => l.status === 'quantized').reduce((s, l) => s + (l.macs || 0), 0); cards.append(card(share(q / totalMacs), 'of the multiplications are in integers')); }
  const outputs = (data.comparison || {}).outputs || [];
  if (outputs.length) {
    const worst = outputs.filter(o => !isNothing(o.sqnr_db)).sort((x, y) => x.sqnr_db - y.sqnr_db)[0];
    cards.append(card(worst ? db(worst.sqnr_db) + ' dB' : 'no error', 'signal to noise at the outputs' + (worst && !isNothing(worst.agreement) ? '; ' + share(worst.agreement) + ' same first answer' : '')));
  }
  if (data.sensitivity) { const s = data.sensitivity; cards.append(card(s.layers[0] ? s.layers[0].node : dash, 'is the most sensitive of ' + s.layers.length + ' layers')); }
  for (const f of data.figures || []) cards.append(card(f.value, f.label, f.tone));
  if (cards.childElementCount) host.append(cards);

  if (variants.length) {
    host.append(make('h2', null, 'Before and after'));
    const box = make('div', { class: 'scroll' });
    const labels = [...new Set(variants.flatMap(v => [...times(v).keys()]))];
    const has = key => variants.some(v => !isNothing(v[key]));
    table(box, [
      { label: 'model', text: 'name', show: v => v.name, key: v => v.name },
      { label: 'size', show: v => bytes(v.bytes), key: v => v.bytes },
      ...(has('top1') ? [{ label: 'top-1', show: v => share(v.top1) + (v.top1_interval ? ' (' + share(v.top1_interval[0]) + ' to ' + share(v.top1_interval[1]) + ')' : ''), key: v => v.top1 }] : []),
      ...(has('metric') ? [{ label: 'metric', show: v => number(v.metric), key: v => v.metric }] : []),
      ...(has('agreement') ? [{ label: 'agrees with float', show: v => share(v.agreement), key: v => v.agreement }] : []),
      ...labels.map(l => ({ label: l + (l.endsWith(' 1') ? ' thread' : ' threads'), show: v => times(v).has(l) ? times(v).get(l).median_ms.toFixed(3) + ' ms' : dash, key: v => times(v).has(l) ? times(v).get(l).median_ms : null })),
    ], variants, { id: 'variants-table' });
    host.append(box);
    if (labels.length) host.append(make('p', { class: 'note' }, 'Latency: median of one sample.'));
    if (data.difference) host.append(make('p', { class: 'note' }, 'McNemar\u2019s p = ' + data.difference.p_value.toFixed(3) + '; to tell a loss of 0.5 % takes ' + data.difference.samples_for_half_percent + ' samples.'));
  }
  if (data.sensitivity) {
    host.append(make('h2', null, 'Most sensitive layers'), make('ol', null, ...data.sensitivity.layers.slice(0, 5).map(l => make('li', null,
      button(l.node, () => { const x = layerOf.get(l.node); if (x) { show('layers'); select(x, 'table'); } }, { class: 'link' }), ' (' + l.op_type + '): loses ' + number(l.alone.loss) + ' alone; in float it saves ' + number(l.gain) + ' of ' + number(data.sensitivity.quantized.loss)))));
  }
  const remarks = [...((data.comparison || {}).remarks || [])];
  const worst = layers.filter(l => l.advice.length).sort((x, y) => x.rows[0].rank - y.rows[0].rank).slice(0, 5);
  if (remarks.length || worst.length) {
    host.append(make('h2', null, 'What to look at'));
    host.append(...advice(remarks));
    for (const layer of worst) host.append(make('p', null, button(layer.name, () => { show('layers'); select(layer, 'table'); }, { class: 'button' })), ...advice(layer.advice.slice(0, 2)));
  }
  if (outputs.length) {
    host.append(make('h2', null, 'Outputs'));
    const box = make('div', { class: 'scroll' });
    table(box, [
      { label: 'output', text: 'name', show: o => o.name, key: o => o.name }, { label: 'dB', show: o => db(o.sqnr_db), key: o => o.sqnr_db },
      { label: 'largest error', show: o => number(o.max_error), key: o => o.max_error }, { label: 'cosine', show: o => isNothing(o.cosine) ? dash : o.cosine.toFixed(5), key: o => o.cosine },
      { label: 'KL', show: o => number(o.kl), key: o => o.kl }, { label: 'agreement', show: o => share(o.agreement), key: o => o.agreement }, { label: 'in top 5', show: o => share(o.top5_agreement), key: o => o.top5_agreement },
    ], outputs, { id: 'outputs-table' });
    host.append(box);
  }
  if ((data.steps || []).length) host.append(make('h2', null, 'What was done'), make('ol', null, ...data.steps.map(s => make('li', null, make('b', null, s.name), ': ' + s.did + ' ', make('span', { class: 'muted' }, isNothing(s.seconds) ? '' : s.seconds.toFixed(2) + ' s')))));
  if ((data.classes || []).length) {
    host.append(make('h2', null, 'By class'));
    const box = make('div', { class: 'scroll' });
    table(box, [{ label: 'class', text: 'name', show: c => c.class, key: c => c.class }, ...variants.map((v, i) => ({ label: v.name, show: c => share(c.top1[i]), key: c => c.top1[i] })),
      ...(variants.length === 2 ? [{ label: 'change', show: c => signed(c.top1[1] - c.top1[0]), key: c => c.top1[1] - c.top1[0] }] : [])], data.classes, { id: 'classes-table' });
    host.append(box);
  }
}

// Colours: blue is well, red is not; told apart by people who do not tell red from green.
const STOPS = [[69, 117, 180], [145, 191, 219], [224, 243, 248], [254, 224, 144], [252, 141, 89], [215, 48, 39]];
function scale(x) {
  const t = Math.max(0, Math.min(1, x)) * (STOPS.length - 1), i = Math.min(STOPS.length - 2, Math.floor(t)), f = t - i;
  const c = STOPS[i].map((v, k) => Math.round(v + f * (STOPS[i + 1][k] - v)));
  return { fill: 'rgb(' + c + ')', ink: (0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]) < 135 ? '#fff' : '#14181d' };
}
const COLORINGS = [];
const badness = x => isNothing(x) ? null : (45 - x) / 35;
if (rows.length) COLORINGS.push(
  { name: 'its own error', of: l => badness(l.own_db), low: '45 dB', high: '10 dB' },
  { name: 'all error so far', of: l => badness(l.leaves), low: '45 dB', high: '10 dB' },
  { name: 'error of the weight', of: l => badness(l.weight ? l.weight.own_sqnr_db : null), low: '45 dB', high: '10 dB' });
if (sensitive.size) {
  const logs = [...sensitive.values()].map(l => l.alone.loss).filter(x => x > 0).map(Math.log10), lo = Math.min(...logs), hi = Math.max(...logs);
  COLORINGS.unshift({ name: 'sensitivity', of: l => l.sensitivity && l.sensitivity.alone.loss > 0 ? (Math.log10(l.sensitivity.alone.loss) - lo) / (hi - lo || 1) : null, low: number(10 ** lo), high: number(10 ** hi) });
}
COLORINGS.push({ name: 'quantized or not', of: l => l.status === 'quantized' ? 0.08 : l.status === 'float' ? 0.75 : null, low: 'integers', high: 'float' });
if (totalMacs) COLORINGS.push({ name: 'multiplications', of: l => l.macs ? Math.sqrt(l.macs / Math.max(...layers.map(m => m.macs || 0))) : null, low: 'few', high: 'most' });

// The graph.
let graph = null;
function drawGraph(host) {
  const box = make('div', { id: 'graph-box' }), panel = make('div', { class: 'panel', 'data-detail': '', 'aria-live': 'polite' });
  const search = make('input', { type: 'search', id: 'graph-search', placeholder: 'find a layer', 'aria-label': 'find a layer in the graph', list: 'layer-names' });
  const color = make('select', { id: 'graph-color', 'aria-label': 'colour by' }, ...COLORINGS.map((c, i) => make('option', { value: i }, c.name)));
  const found = make('span', { class: 'muted', role: 'status' });
  const legend = make('span', { class: 'legend' });
  host.append(make('div', { class: 'tools' }, search, make('label', null, 'colour by ', color), button('\u2212', () => zoom(1 / 1.4), { 'aria-label': 'zoom out', id: 'graph-out' }), button('+', () => zoom(1.4), { 'aria-label': 'zoom in', id: 'graph-in' }), button('whole', () => fit(true), { id: 'graph-fit' }), button('worst', () => worst(), { id: 'graph-worst', title: 'go to the worst layer' }), found), make('p', null, legend),
    make('datalist', { id: 'layer-names' }, ...layers.map(l => make('option', { value: l.name }))),
    make('div', { class: 'split' }, box, panel),
    make('p', { class: 'note' }, 'Drag to move, scroll or pinch to zoom. With the keyboard: arrows go from layer to layer, Enter opens, + and \u2212 zoom. Dashed: in float.'));

  const g = new vendor.Graph();
  g.setGraph({ rankdir: 'TB', nodesep: 26, ranksep: 34, marginx: 20, marginy: 20 });
  g.setDefaultEdgeLabel(() => ({}));
  const short = (text, n) => text.length <= n ? text : text.slice(0, n / 2 - 1) + '\u2026' + text.slice(-(n / 2));
  const maker = new Map();
  layers.forEach(l => l.outputs.forEach(o => maker.set(o, l)));
  layers.forEach(l => g.setNode(String(l.i), { width: 150, height: 44 }));
  const edges = [], next = new Map(layers.map(l => [l.i, []])), before = new Map(layers.map(l => [l.i, []]));
  for (const l of layers) for (const input of l.inputs) {
    const from = maker.get(input);
    if (from && from.i !== l.i && !next.get(from.i).includes(l.i)) { g.setEdge(String(from.i), String(l.i)); next.get(from.i).push(l.i); before.get(l.i).push(from.i); edges.push([from.i, l.i]); }
  }
  vendor.layout(g);
  const size = g.graph(), svg = make('svg', { role: 'group', 'aria-label': 'the model as a graph of ' + layers.length + ' layers' }), world = make('g');
  svg.append(make('defs', null, make('marker', { id: 'arrow', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: 'userSpaceOnUse', orient: 'auto' }, make('path', { class: 'arrow', d: 'M0,0L8,4L0,8z' }))), world);
  const lines = edges.map(([a, b]) => {
    const points = g.edge(String(a), String(b)).points;
    const d = points.map((p, i) => (i ? 'L' : 'M') + p.x.toFixed(1) + ',' + p.y.toFixed(1)).join('');
    const path = make('path', { class: 'edge', d, 'marker-end': 'url' + '(#arrow)' });
    world.append(path);
    return { a, b, path };
  });
  const nodes = layers.map(l => {
    const at = g.node(String(l.i));
    const el = make('g', { class: 'gnode ' + l.status, transform: 'translate(' + at.x + ',' + at.y + ')', tabindex: -1, role: 'button', 'data-name': l.name, 'aria-label': l.op_type + ' ' + l.name + (l.out ? ', own error ' + db(l.own_db) + ' dB' : '') },
      make('title', null, l.name + ' (' + l.op_type + ', ' + l.status + ')' + (l.out ? ': own ' + db(l.own_db) + ' dB, all ' + db(l.leaves) + ' dB' : '')),
      make('rect', { x: -75, y: -22, width: 150, height: 44, rx: 8 }), make('text', { class: 'op', 'text-anchor': 'middle', y: -3 }, l.op_type), make('text', { 'text-anchor': 'middle', y: 13 }, short(l.name, 20)));
    el.addEventListener('click', () => { if (!moved) { focus(l.i); select(l, 'graph'); } });
    world.append(el);
    return el;
  });
  box.append(svg);

  let x = 0, y = 0, k = 1, moved = false;
  const place = () => world.setAttribute('transform', 'translate(' + x + ',' + y + ') scale(' + k + ')');
  const limit = z => Math.max(0.02, Math.min(4, z));
  function zoom(by, cx = box.clientWidth / 2, cy = box.clientHeight / 2) {
    const z = limit(k * by);
    x = cx - (cx - x) * z / k; y = cy - (cy - y) * z / k; k = z; place();
  }
  function fit(whole) {
    const w = box.clientWidth, h = box.clientHeight;
    k = limit(whole ? Math.min(w / size.width, h / size.height) : Math.max(Math.min(1, w / size.width), 0.55));
    x = (w - size.width * k) / 2; y = whole ? (h - size.height * k) / 2 : 0;
    if (!whole) { const first = g.node('0'); x = w / 2 - first.x * k; }
    place();
  }
  const centre = i => { const at = g.node(String(i)); if (k < 0.5) k = 0.8; x = box.clientWidth / 2 - at.x * k; y = box.clientHeight / 2 - at.y * k; place(); };
  let tab = 0;
  function focus(i, really) { nodes[tab].setAttribute('tabindex', -1); tab = i; nodes[i].setAttribute('tabindex', 0); if (really) nodes[i].focus({ preventScroll: true }); }
  focus(0);
  svg.addEventListener('keydown', e => {
    const i = nodes.indexOf(e.target.closest('.gnode'));
    if (i < 0) return;
    const sibling = by => { const same = before.get(i).flatMap(p => next.get(p)); return same[(same.indexOf(i) + by + same.length) % (same.length || 1)]; };
    const to = { ArrowDown: () => next.get(i)[0], ArrowUp: () => before.get(i)[0], ArrowRight: () => sibling(1), ArrowLeft: () => sibling(-1), Home: () => 0, End: () => nodes.length - 1 }[e.key];
    if (to) { e.preventDefault(); const j = to(); if (!isNothing(j)) { focus(j, true); centre(j); } }
    else if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); select(layers[i], 'graph'); }
    else if (e.key === '+' || e.key === '=') zoom(1.4);
    else if (e.key === '-') zoom(1 / 1.4);
  });
  const pointers = new Map();
  box.addEventListener('pointerdown', e => { pointers.set(e.pointerId, e); moved = false; box.classList.add('drag'); });
  addEventListener('pointermove', e => {
    const last = pointers.get(e.pointerId);
    if (!last) return;
    const dx = e.clientX - last.clientX, dy = e.clientY - last.clientY;
    if (pointers.size === 1) { x += dx; y += dy; place(); }
    else {
      const other = [...pointers.values()].find(p => p.pointerId !== e.pointerId), far = (p, q) => Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY), r = box.getBoundingClientRect();
      zoom(far(e, other) / (far(last, other) || 1), (e.clientX + other.clientX) / 2 - r.left, (e.clientY + other.clientY) / 2 - r.top);
    }
    if (Math.abs(dx) + Math.abs(dy) > 2) moved = true;
    pointers.set(e.pointerId, e);
  });
  const up = e => { pointers.delete(e.pointerId); if (!pointers.size) box.classList.remove('drag'); };
  addEventListener('pointerup', up); addEventListener('pointercancel', up);
  box.addEventListener('wheel', e => { e.preventDefault(); const r = box.getBoundingClientRect(); zoom(Math.exp(-e.deltaY / 400), e.clientX - r.left, e.clientY - r.top); }, { passive: false });

  const paint = () => {
    const c = COLORINGS[color.value];
    layers.forEach((l, i) => {
      const v = c.of(l), s = isNothing(v) ? { fill: 'var(--paper)', ink: 'var(--ink)' } : scale(v);
      nodes[i].querySelector('rect').style.fill = s.fill;
      nodes[i].querySelectorAll('text').forEach(t => { t.style.fill = s.ink; });
    });
    const stops = STOPS.map((_, i) => scale(i / (STOPS.length - 1)).fill).join(',');
    legend.replaceChildren(c.low, make('i', { style: 'background:linear-gradient(90deg,' + stops + ')' }), c.high, ' \u00b7 white: nothing to show');
  };
  color.addEventListener('change', paint);
  paint();
  const find = () => {
    const word = search.value.toLowerCase().trim();
    const hits = layers.filter(l => word && (l.name + ' ' + l.op_type + ' ' + l.outputs.join(' ')).toLowerCase().includes(word));
    nodes.forEach((n, i) => { n.classList.toggle('hit', hits.includes(layers[i])); n.classList.toggle('dim', !!word && !hits.includes(layers[i])); });
    found.textContent = word ? hits.length + ' found' : '';
    if (hits.length) { focus(hits[0].i); centre(hits[0].i); }
    return hits;
  };
  search.addEventListener('input', find);
  search.addEventListener('keydown', e => { if (e.key === 'Enter') { const [hit] = find(); if (hit) { select(hit, 'graph'); focus(hit.i, true); } } });
  function worst() {
    const c = COLORINGS[color.value], list = layers.filter(l => !isNothing(c.of(l))).sort((p, q) => c.of(q) - c.of(p));
    if (list.length) { centre(list[0].i); focus(list[0].i); select(list[0], 'graph'); }
  }
  graph = { mark: (name, move) => {
    const i = layers.findIndex(l => l.name === name);
    nodes.forEach((n, j) => j === i ? n.setAttribute('aria-current', 'true') : n.removeAttribute('aria-current'));
    lines.forEach(l => l.path.classList.toggle('on', l.a === i || l.b === i));
    if (i >= 0) { focus(i); if (move) centre(i); }
  } };
  fit(false);
}

// Error along the graph: noise as a share of the signal, so that higher is worse.
function strip(host) {
  const list = layers.filter(l => l.out);
  if (!list.length) return;
  const H = 150, box = make('div', { class: 'scroll strip' });
  const height = x => isNothing(x) ? 0 : H * (60 - Math.max(0, Math.min(60, x))) / 60;
  let w = Math.max(7, Math.min(26, 1100 / list.length));
  const draw = () => {
    const svg = make('svg', { width: 44 + list.length * w, height: H + 20, role: 'group', 'aria-label': 'error of each layer, in the order of the graph' });
    for (const level of [0, 20, 40, 60]) { const y = 10 + H * level / 60; svg.append(make('line', { x1: 38, x2: 44 + list.length * w, y1: y, y2: y }), make('text', { x: 0, y: y + 4 }, level + ' dB')); }
    list.forEach((l, i) => {
      const x = 41 + i * w, all = height(l.leaves), own = height(l.own_db), label = l.name + ': own ' + db(l.own_db) + ' dB, all ' + db(l.leaves) + ' dB';
      const bar = make('g', { class: 'bar', tabindex: i ? -1 : 0, role: 'button', 'aria-label': label, 'data-name': l.name }, make('title', null, label),
        make('rect', { class: 'all', x: x + 1, y: 10 + H - all, width: Math.max(1, w * .42), height: all }), make('rect', { class: 'own', x: x + 1 + w * .46, y: 10 + H - own, width: Math.max(1, w * .42), height: own }), make('rect', { class: 'hit', x, y: 10, width: w, height: H }));
      bar.addEventListener('click', () => select(l, 'strip'));
      bar.addEventListener('keydown', e => {
        if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); select(l, 'strip'); }
        const to = e.key === 'ArrowRight' ? bar.nextElementSibling : e.key === 'ArrowLeft' ? bar.previousElementSibling : null;
        if (to && to.classList.contains('bar')) { e.preventDefault(); bar.setAttribute('tabindex', -1); to.setAttribute('tabindex', 0); to.focus(); }
      });
      svg.append(bar);
    });
    box.replaceChildren(svg);
  };
  host.append(make('h2', null, 'Error along the graph'), make('div', { class: 'tools' }, button('\u2212', () => { w = Math.max(3, w / 1.5); draw(); }, { 'aria-label': 'zoom out', id: 'strip-out' }), button('+', () => { w = Math.min(60, w * 1.5); draw(); }, { 'aria-label': 'zoom in', id: 'strip-in' }),
    make('span', { class: 'muted' }, make('span', { class: 'key', style: 'background:var(--bar2)' }), 'all error so far', make('span', { class: 'key', style: 'background:var(--accent)' }), 'its own. Higher is worse.')), box);
  draw();
}

// Tools above a table: words and a choice.
function filtered(host, columns, list, options) {
  const search = make('input', { type: 'search', placeholder: options.placeholder, 'aria-label': options.placeholder, id: options.id.replace('table', 'search') });
  const choice = make('select', { 'aria-label': 'show', id: options.id.replace('table', 'choice') }, make('option', { value: '' }, 'everything'), ...options.choices.map(([value, label]) => make('option', { value }, label)));
  const count = make('span', { class: 'muted', role: 'status' }), box = make('div', { class: 'scroll tall' });
  host.append(make('div', { class: 'tools' }, search, options.choices.length ? choice : null, count), box);
  const draw = table(box, columns, list, options);
  const filter = () => {
    const word = search.value.toLowerCase();
    const kept = list.filter(row => options.words(row).some(text => String(text).toLowerCase().includes(word)) && (!choice.value || options.is(row, choice.value)));
    draw(kept);
    count.textContent = kept.length + ' of ' + list.length;
  };
  search.addEventListener('input', filter); choice.addEventListener('change', filter);
  filter();
}

function layersView(host) {
  strip(host);
  const has = rows.length > 0;
  host.append(make('h2', null, 'Layers'));
  filtered(host, [
    { label: '#', show: l => l.i + 1, key: l => l.i }, { label: 'layer', text: 'name', show: l => l.name, key: l => l.name, open: l => select(l, 'table') }, { label: 'operator', text: 'text', show: l => l.op_type, key: l => l.op_type },
    { label: 'status', text: 'text', show: l => make('span', { class: 'chip ' + l.status }, l.status), key: l => l.status },
    ...(has ? [{ label: 'arrives dB', show: l => db(l.arrives), key: l => l.arrives, title: 'error of what it takes' }, { label: 'own dB', show: l => db(l.own_db), key: l => l.own_db, title: 'its own error' }, { label: 'leaves dB', show: l => db(l.leaves), key: l => l.leaves, title: 'all error so far' },
      { label: 'weight dB', show: l => db(l.weight && l.weight.own_sqnr_db), key: l => l.weight && l.weight.own_sqnr_db }, { label: 'clipped', show: l => share(l.out && l.out.clipped), key: l => l.out && l.out.clipped }, { label: 'codes', show: l => share(l.out && l.out.codes_used), key: l => l.out && l.out.codes_used }] : []),
    ...(sensitive.size ? [{ label: 'loss alone', show: l => number(l.sensitivity && l.sensitivity.alone.loss), key: l => l.sensitivity && l.sensitivity.alone.loss }] : []),
    { label: 'why', text: 'text', show: l => l.reason || l.advice.map(a => plain(a.cause)).join(', '), key: l => l.reason || String(l.advice.length) },
  ], layers, { id: 'layers-table', placeholder: 'name, operator, reason', words: l => [l.name, l.op_type, l.reason || '', ...l.outputs], choices: [['quantized', 'quantized'], ['float', 'in float'], ...(has ? [['advice', 'with advice']] : [])], is: (l, v) => v === 'advice' ? l.advice.length : l.status === v });
  host.append(make('div', { class: 'panel', 'data-detail': '', 'aria-live': 'polite' }));
}

function tensorsView(host) {
  host.append(make('h2', null, 'Tensors'), make('p', { class: 'muted' }, 'The worst own error first. Own: the node run on float inputs with the quantized weights, its result rounded. All: the quantized model\u2019s value against the float one\u2019s.'));
  filtered(host, [
    { label: 'rank', show: t => t.rank, key: t => t.rank }, { label: 'tensor', text: 'name', show: t => t.name, key: t => t.name, open: t => { const l = layerOf.get(t.node) || ownerOf(t.name); if (l) { show('layers'); select(l, 'table'); } } }, { label: 'kind', text: 'text', show: t => t.kind, key: t => t.kind },
    { label: 'operator', text: 'text', show: t => t.op_type, key: t => t.op_type }, { label: 'integers', text: 'text', show: t => t.dtype || dash, key: t => t.dtype || '' }, { label: 'own dB', show: t => db(t.own_sqnr_db), key: t => t.own_sqnr_db }, { label: 'dB', show: t => db(t.sqnr_db), key: t => t.sqnr_db },
    { label: 'MSE', show: t => number(t.mse), key: t => t.mse }, { label: 'MAE', show: t => number(t.mae), key: t => t.mae }, { label: 'largest error', show: t => number(t.max_error), key: t => t.max_error }, { label: 'cosine', show: t => isNothing(t.cosine) ? dash : t.cosine.toFixed(5), key: t => t.cosine },
    { label: 'clipped', show: t => share(t.clipped), key: t => t.clipped }, { label: 'codes', show: t => share(t.codes_used), key: t => t.codes_used }, { label: 'advice', text: 'text', show: t => t.advice.map(a => plain(a.cause)).join(', '), key: t => String(t.advice.length) },
  ], rows, { id: 'tensors-table', placeholder: 'name, operator, type', words: t => [t.name, t.op_type, t.node, t.dtype || ''], choices: [['activation', 'activations'], ['weight', 'weights'], ['bias', 'biases'], ['advice', 'with advice']], is: (t, v) => v === 'advice' ? t.advice.length : t.kind === v });
  const un = data.comparison.unmatched;
  if (un.length) {
    const box = make('div', { class: 'scroll' });
    table(box, [{ label: 'value of the float model', text: 'name', show: u => u.name, key: u => u.name }, { label: 'why it has no counterpart', text: 'text', show: u => u.reason, key: u => u.reason }], un);
    host.append(make('details', null, make('summary', null, un.length + ' values only in the float model'), box));
  }
}

function sensitivityView(host) {
  const s = data.sensitivity, most = Math.max(...s.layers.map(l => l.alone.loss), 1e-300), gains = Math.max(...s.layers.map(l => Math.abs(l.gain)), 1e-300), labelled = !isNothing(s.float_top1);
  host.append(make('h2', null, 'Sensitivity'), make('p', { class: 'muted' }, s.samples + (s.samples < s.samples_given ? ' of ' + s.samples_given : '') + ' samples. Alone: only this layer quantized. Saved: how much of the loss goes away when only this layer stays in float. All quantized: loss ' + number(s.quantized.loss) + ', ' + db(s.quantized.sqnr_db) + ' dB' + (labelled ? ', top-1 ' + share(s.quantized.top1) + ' of ' + share(s.float_top1) + ' in float' : '') + '.'));
  const meter = (x, of) => make('span', { class: 'meter' }, number(x), make('i', { class: x < 0 ? 'neg' : null, style: 'width:' + (90 * Math.abs(x) / of).toFixed(1) + 'px' }));
  filtered(host, [
    { label: 'rank', show: l => l.rank, key: l => l.rank }, { label: 'layer', text: 'name', show: l => l.node, key: l => l.node, open: l => { const x = layerOf.get(l.node); if (x) { show('layers'); select(x, 'table'); } } }, { label: 'operator', text: 'text', show: l => l.op_type, key: l => l.op_type },
    { label: 'loss alone', show: l => meter(l.alone.loss, most), key: l => l.alone.loss }, { label: 'dB alone', show: l => db(l.alone.sqnr_db), key: l => l.alone.sqnr_db },
    ...(labelled ? [{ label: 'top-1 alone', show: l => share(l.alone.top1), key: l => l.alone.top1 }] : []),
    { label: 'saved in float', show: l => meter(l.gain, gains), key: l => l.gain }, { label: 'dB without', show: l => db(l.in_float.sqnr_db), key: l => l.in_float.sqnr_db },
    ...(labelled ? [{ label: 'top-1 without', show: l => share(l.in_float.top1), key: l => l.in_float.top1 }] : []),
  ], s.layers, { id: 'ranking-table', id_of: l => l.node, placeholder: 'layer or operator', words: l => [l.node, l.op_type], choices: [], is: () => true });
  if (s.only_with_others.length) host.append(make('p', { class: 'note' }, 'Quantized only together with their neighbours: ' + s.only_with_others.join(', ') + '.'));
}

function lineChart(host, c) {
  const box = make('div', { class: 'plot', role: 'img', 'aria-label': c.title });
  host.append(make('figure', null, make('h3', null, c.title), box, make('div', { class: 'swatches' }, ...c.series.map((s, i) => make('span', null, make('span', { class: 'keyline', style: 'border-color:' + lines()[i % 6] }), s.name + ' '))), c.note ? make('figcaption', null, c.note) : null));
  chart(box, width => new vendor.uPlot({
    width, height: 260, legend: { show: false }, cursor: { drag: { x: false, y: false } }, scales: { x: { time: false } },
    axes: [axis(c.x_label), axis(c.y_label, { size: 72, values: (u, list) => list.map(number) })], series: [{}, ...c.series.map((s, i) => ({ stroke: lines()[i % 6], width: 2, points: { show: c.x.length < 40 } }))],
  }, [c.x, ...c.series.map(s => s.values)], box));
}

function calibrationView(host) {
  const c = data.convergence;
  if (c) {
    host.append(make('h2', null, 'Calibration'));
    lineChart(host, { title: 'How soon the ranges were found', x: c.done.map((_, i) => i + 1), x_label: 'samples seen', y_label: 'share of the final range', series: [{ name: 'mean over ' + c.n_tensors + ' tensors', values: c.mean }, { name: 'slowest tensor', values: c.least }, { name: 'tensors within 1 %', values: c.done }],
      note: 'The width of each tensor\u2019s smallest-to-largest range after so many samples. A curve that still climbs at its end asks for more samples.' });
  }
  const names = Object.keys(profiles);
  if (names.length) {
    const cals = names.map(n => profiles[n].thresholds).reduce((a, b) => b.length > a.length ? b : a).map(t => t.calibrator);
    host.append(make('h2', null, 'Ranges by calibrator'));
    filtered(host, [
      { label: 'tensor', text: 'name', show: r => r.name, key: r => r.name, open: r => { const l = ownerOf(r.name); if (l) { show('layers'); select(l, 'table'); } } },
      ...cals.map((name, i) => ({ label: plain(name), show: r => { const t = profiles[r.name].thresholds[i]; return t ? number(t.min) + ' to ' + number(t.max) : dash; }, key: r => { const t = profiles[r.name].thresholds[i]; return t ? t.max - t.min : null; }, title: 'sort by width of the range' })),
    ], names.map(name => ({ name })), { id: 'ranges-table', placeholder: 'tensor', words: r => [r.name], choices: [], is: () => true });
  }
}

function paretoView(host) {
  const list = data.pareto, box = make('div', { class: 'plot', role: 'img', 'aria-label': 'size and quality of ' + list.length + ' models' });
  host.append(make('h2', null, 'Pareto front'), make('p', { class: 'muted' }, 'Each point is one way of quantizing. Those on the line are not beaten in both ' + data.pareto_axes[0] + ' and ' + data.pareto_axes[1] + '.'), box);
  chart(box, width => {
    const sorted = list.slice().sort((a, b) => a.cost - b.cost);
    return new vendor.uPlot({ width, height: 300, legend: { show: false }, cursor: { drag: { x: false, y: false } }, scales: { x: { time: false } }, axes: [axis(data.pareto_axes[0]), axis(data.pareto_axes[1], { size: 62 })],
      series: [{}, { stroke: css('--muted'), paths: () => null, points: { show: true, size: 8, fill: css('--bar2') } }, { stroke: css('--accent'), width: 2, spanGaps: true, points: { show: true, size: 9, fill: css('--accent') } }] },
    [sorted.map(p => p.cost), sorted.map(p => p.quality), sorted.map(p => p.on_front ? p.quality : null)], box);
  });
  const rows = make('div', { class: 'scroll' });
  table(rows, [{ label: 'variant', text: 'name', show: p => p.name, key: p => p.name }, { label: data.pareto_axes[0], show: p => number(p.cost), key: p => p.cost }, { label: data.pareto_axes[1], show: p => number(p.quality), key: p => p.quality }, { label: 'on the front', text: 'text', show: p => p.on_front ? 'yes' : '', key: p => p.on_front ? 0 : 1 }], list, { id: 'pareto-table' });
  host.append(rows);
}

function manifestView(host) {
  host.append(make('h2', null, 'Manifest'), make('p', { class: 'muted' }, 'What went in. The same inputs and options give the same page, but for what was timed.'));
  for (const group of data.manifest) {
    const box = make('div', { class: 'scroll' });
    host.append(make('h3', null, group.name), box);
    box.append(make('table', null, make('tbody', null, ...group.items.map(([name, value]) => make('tr', null, make('th', { scope: 'row' }, name), make('td', { class: 'name' }, make('code', null, value)))))));
  }
  host.append(make('p', null, button('save the data as JSON', () => {
    const a = make('a', { href: URL.createObjectURL(new Blob([at('data').textContent], { type: 'application/json' })), download: 'report.json' });
    a.click();
  }, { class: 'button', id: 'save' })));
}

const VIEWS = [
  ['summary', 'Summary', () => true, summary], ['graph', 'Graph', () => layers.length, drawGraph], ['layers', 'Layers', () => layers.length, layersView], ['tensors', 'Tensors', () => rows.length, tensorsView],
  ['sensitivity', 'Sensitivity', () => data.sensitivity, sensitivityView], ['calibration', 'Calibration', () => data.convergence || Object.keys(profiles).length, calibrationView],
  ['curves', 'Curves', () => (data.charts || []).length, host => data.charts.forEach(c => lineChart(host, c))], ['pareto', 'Pareto', () => (data.pareto || []).length, paretoView], ['manifest', 'Manifest', () => (data.manifest || []).length, manifestView],
].filter(([, , has]) => has());
const drawn = new Set();
function show(id, focus) {
  const view = VIEWS.find(([name]) => name === id) || VIEWS[0];
  for (const [name] of VIEWS) {
    const is = name === view[0], tab = at('tab-' + name);
    at('view-' + name).hidden = !is;
    tab.setAttribute('aria-selected', String(is)); tab.setAttribute('tabindex', is ? 0 : -1);
    if (is) { tab.scrollIntoView({ block: 'nearest', inline: 'nearest' }); if (focus) tab.focus(); }
  }
  if (!drawn.has(view[0])) { drawn.add(view[0]); view[3](at('view-' + view[0])); }
  if (current) select(current); else if (['layers', 'graph'].includes(view[0])) {
    const worst = data.sensitivity && data.sensitivity.layers[0];
    const first = rows.length ? layerOf.get(rows[0].node) || ownerOf(rows[0].name) : worst ? layerOf.get(worst.node) : null;
    select(first || layers[0], 'start');
  }
  redraw(false);
  if (location.hash.slice(1) !== view[0]) history.replaceState(null, '', '#' + view[0]);
}
for (const [name, label] of VIEWS) {
  at('tabs').append(button(label, () => show(name), { role: 'tab', id: 'tab-' + name, 'aria-controls': 'view-' + name, tabindex: -1 }));
  at('views').append(make('section', { id: 'view-' + name, role: 'tabpanel', 'aria-labelledby': 'tab-' + name, hidden: '' }));
}
at('tabs').addEventListener('keydown', e => {
  const i = VIEWS.findIndex(([name]) => 'tab-' + name === document.activeElement.id), n = VIEWS.length;
  const to = { ArrowRight: (i + 1) % n, ArrowLeft: (i + n - 1) % n, Home: 0, End: n - 1 }[e.key];
  if (i >= 0 && to !== undefined) { e.preventDefault(); show(VIEWS[to][0], true); }
});
addEventListener('hashchange', () => show(location.hash.slice(1)));
show(location.hash.slice(1));
document.documentElement.dataset.ready = 'true';
