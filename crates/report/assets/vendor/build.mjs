// Bundles the libraries of the report's pages into vendor.js (one global, `vendor`) and vendor.css, with their licences.
// `cargo xtask vendor` installs what package-lock.json pins and runs this; `cargo build` needs neither npm nor node.
import { build } from 'esbuild';
import { readFileSync, writeFileSync } from 'node:fs';

const names = ['@dagrejs/dagre', '@dagrejs/graphlib', 'uplot'];
const read = (name, file) => readFileSync(`node_modules/${name}/${file}`, 'utf8');
const version = name => JSON.parse(read(name, 'package.json')).version;
// What ends a script or looks like an address has no place in a page that is one file without network.
const licence = name => read(name, 'LICENSE').trim().replaceAll('*/', '* /');
const banner = `/*! ${names.map(n => `${n} ${version(n)}`).join(', ')}\n\n`
  + names.map(n => `${n}:\n${licence(n)}`).join('\n\n') + '\n*/';

const result = await build({
  stdin: { contents: "export { default as uPlot } from 'uplot'; export { Graph, layout } from '@dagrejs/dagre';", resolveDir: '.' },
  bundle: true, minify: true, write: false, format: 'iife', globalName: 'vendor', target: 'es2020', legalComments: 'none', charset: 'ascii',
});
writeFileSync('vendor.js', banner + '\n' + result.outputFiles[0].text.trim().replaceAll('</', '<\\/') + '\n');
const css = await build({ stdin: { contents: read('uplot', 'dist/uPlot.min.css'), loader: 'css' }, minify: true, write: false, legalComments: 'none' });
writeFileSync('vendor.css', css.outputFiles[0].text.trim() + '\n');
