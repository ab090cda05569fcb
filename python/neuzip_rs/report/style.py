"""How the report looks: readable at any width, in light and dark, also to the colour-blind."""

from typing import Final

STYLE: Final = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --faint: #5a6572; --line: #d5dae0; --box: #eef1f4;
  --coded: #0072b2; --raw: #e69f00; --other: #6b7480; --mark: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e8ebee; --faint: #a3adb8; --line: #363d45; --box: #232930;
    --coded: #56b4e9; --raw: #e69f00; --other: #9aa4af; --mark: #ffffff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; border-top: 1px solid var(--line);
     padding-top: 1.25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .25rem 0 1rem; max-width: 44rem; }
.lead { font-size: 1.1rem; }
.note, small, figcaption, .axis { color: var(--faint); font-size: .85rem; }
.note { margin: 0 0 .5rem; }
small { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0;
          margin: .5rem 0 0; font-size: .9rem; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em;
          vertical-align: -.08em; border-radius: 2px; }
.row { display: grid; grid-template-columns: minmax(9rem, 16rem) 1fr 9.5rem; gap: .25rem .75rem;
       align-items: center; padding: .3rem 0; }
.name { overflow-wrap: anywhere; line-height: 1.3; }
.value { font-variant-numeric: tabular-nums; line-height: 1.3; }
.track { position: relative; display: flex; height: 1.4rem; background: var(--box);
         border: 1px solid var(--line); border-radius: 3px; overflow: hidden; }
.coded { background: var(--coded); }
.raw { background: var(--raw); }
.other { background: var(--other); }
.saved { background: var(--box); border: 1px solid var(--line); }
.mark { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1.5px;
        background: var(--mark); outline: 1px solid var(--paper); }
figure { margin: .75rem 0 1.5rem; }
.histogram { display: flex; align-items: flex-end; gap: 1px; height: 11rem;
             border-bottom: 1px solid var(--faint); }
.histogram span { flex: 1 1 0; min-width: 1px; min-height: 1px; background: var(--coded); }
.axis { display: flex; justify-content: space-between; margin-top: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; font-weight: normal; white-space: nowrap; }
thead th { color: var(--faint); }
tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: .5rem 0; }
@media (max-width: 40rem) {
  .row { grid-template-columns: 1fr auto; }
  .row .track { grid-column: 1 / -1; grid-row: 2; }
  .value { text-align: right; }
}
@media print { .track, .swatch, .histogram span { print-color-adjust: exact; } }
"""
