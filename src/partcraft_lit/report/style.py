"""The look of the report: one style sheet, light and dark, from a phone to a desk."""
# ruff: noqa: E501 - a rule of CSS reads best on one line

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #fff; --ink: #1d2027; --soft: #5d6470; --line: #e5e2db; --well: #f2f0ea;
  --accent: #0b6aa8; --good: #0a7d55; --bad: #b4472b; --shade: 0 1px 2px rgb(30 30 40 / .05), 0 6px 20px rgb(30 30 40 / .05);
  --round: 14px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131519; --card: #1b1e24; --ink: #e8eaee; --soft: #a0a7b4; --line: #2d323b; --well: #23272f;
    --accent: #62b6ee; --good: #4fc596; --bad: #f08b6d; --shade: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 60px; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, .masthead, nav > div, footer { max-width: 1160px; margin: 0 auto; padding: 0 28px; }
h1, h2, h3 { line-height: 1.18; letter-spacing: -.018em; text-wrap: balance; margin: 0; }
h1 { font-size: clamp(27px, 3.6vw, 38px); font-weight: 680; }
h2 { font-size: clamp(21px, 2.6vw, 27px); font-weight: 650; }
h3 { font-size: 16px; font-weight: 620; letter-spacing: -.005em; }
p { margin: 0; max-width: 92ch; }
img { display: block; width: 100%; height: auto; border-radius: 9px; background: var(--well); }
figure { margin: 0; }
b { font-weight: 620; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: .86em; }
.quiet, figcaption { color: var(--soft); font-size: 14px; }
.quiet b { color: var(--ink); font-variant-numeric: tabular-nums; }
.eyebrow {
  color: var(--accent); font-size: 12.5px; font-weight: 650; letter-spacing: .09em; text-transform: uppercase;
  margin-bottom: 10px;
}
.masthead { padding-top: 34px; padding-bottom: 20px; }
.masthead > p.lead { font-size: 18px; color: var(--soft); margin-top: 10px; max-width: 84ch; text-wrap: pretty; }
.stats { display: flex; flex-wrap: wrap; gap: 10px 44px; margin: 20px 0 0; padding: 0; list-style: none; }
.stats li { display: grid; align-content: start; }
.stats .value { font-size: 27px; font-weight: 660; letter-spacing: -.02em; font-variant-numeric: tabular-nums; line-height: 1.25; }
.stats .label { font-size: 13.5px; line-height: 1.35; }
.stats .note { font-size: 13px; color: var(--soft); line-height: 1.35; }
nav {
  position: sticky; top: 0; z-index: 5; border-block: 1px solid var(--line);
  background: color-mix(in srgb, var(--paper) 88%, transparent); backdrop-filter: blur(10px);
}
nav > div { display: flex; align-items: center; gap: 4px 22px; height: 46px; overflow-x: auto; scrollbar-width: none; }
nav > div::-webkit-scrollbar { display: none; }
nav a { color: var(--soft); text-decoration: none; font-size: 14px; font-weight: 550; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--ink); }
section { padding: 32px 0 14px; }
section > header { margin-bottom: 20px; }
section > header p { color: var(--soft); margin-top: 6px; }
.sub { margin: 34px 0 14px; }
.chips { display: flex; flex-wrap: wrap; gap: 8px 18px; margin: 14px 0 0; padding: 0; list-style: none; font-size: 14px; }
.chip { display: inline-flex; align-items: center; gap: 7px; }
.chip i, .legend i { width: 11px; height: 11px; border-radius: 4px; background: var(--c); flex: none; }
.hybrids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 22px; }
.hybrid, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: var(--round); box-shadow: var(--shade);
}
.hybrid { padding: 16px 16px 14px; display: flex; flex-direction: column; }
.sources { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 8px; }
.sources figure { min-width: 0; }
.sources img { border-radius: 8px 8px 0 0; border-bottom: 4px solid var(--c); }
.sources figcaption { font-size: 12.5px; line-height: 1.3; padding-top: 6px; color: var(--ink); overflow-wrap: anywhere; }
.sources figcaption b { display: flex; justify-content: space-between; gap: 4px; }
.sources figcaption span { color: var(--soft); font-size: 12px; }
.mark { font-weight: 700; font-style: normal; }
.mark.yes { color: var(--good); } .mark.no { color: var(--bad); }
.join { height: 30px; display: block; width: 100%; margin: 5px 0 7px; }
.join path { fill: none; stroke: color-mix(in srgb, var(--soft) 55%, transparent); stroke-width: 1.4; vector-effect: non-scaling-stroke; }
.results { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.results.single { grid-template-columns: minmax(0, 1fr); justify-items: center; }
.results.single figure { width: min(100%, 320px); }
.results figcaption { padding-top: 7px; font-size: 13.5px; }
.results figcaption b { color: var(--ink); }
.prompt {
  max-width: none; margin-top: 12px; padding: 9px 12px; border-radius: 9px; background: var(--well); font-size: 13px; line-height: 1.75;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere;
}
.prompt mark {
  background: color-mix(in srgb, var(--c) 26%, transparent); color: inherit; border-radius: 5px; padding: 1px 5px;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; white-space: nowrap;
}
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 252px), 1fr)); gap: 18px; }
.pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: center; }
.pair figcaption { font-size: 13px; padding-top: 6px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.plates { display: grid; gap: 22px; }
.plates.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.plate { padding: 12px; overflow-x: auto; }
.plate img { background: #fff; }
.plate.wide img { min-width: 640px; }
.plate figcaption { padding: 9px 2px 0; position: sticky; left: 0; }
.attention { display: grid; gap: 16px; }
.attention > figure { padding: 16px; }
.attention .maps { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: 12px; }
.attention .maps figcaption { display: flex; flex-wrap: wrap; gap: 0 7px; align-items: baseline; padding-top: 6px; font-size: 13px; color: var(--ink); }
.attention .maps figcaption span { color: var(--soft); font-variant-numeric: tabular-nums; }
.attention i { width: 10px; height: 10px; border-radius: 3.5px; background: var(--c); align-self: center; }
.charts { display: grid; grid-template-columns: repeat(var(--cols), minmax(0, 1fr)); gap: 20px; }
.chart { padding: 15px 16px 13px; background: var(--card); border: 1px solid var(--line); border-radius: var(--round); box-shadow: var(--shade); }
.chart figcaption { display: flex; justify-content: space-between; align-items: baseline; margin-bottom: 8px; }
.chart figcaption b { color: var(--ink); font-size: 15px; }
.chart figcaption span { font-size: 12px; border: 1px solid var(--line); border-radius: 99px; padding: 0 8px; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart path { fill: none; }
.chart .rule { stroke: var(--line); } .chart .base { stroke: color-mix(in srgb, var(--soft) 60%, transparent); }
.chart .main { stroke: color-mix(in srgb, var(--c) 86%, var(--ink)); stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { stroke: var(--c); stroke-width: 1; opacity: .26; }
.chart .dots { fill: color-mix(in srgb, var(--c) 86%, var(--ink)); }
.chart p { margin-top: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 3px 14px; margin: 8px 0 0; padding: 0; list-style: none; font-size: 13px; color: var(--soft); }
.legend li { display: inline-flex; align-items: center; gap: 6px; }
.legend b { color: var(--ink); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 560; color: var(--soft); font-size: 12.5px; white-space: nowrap; }
.scores { --gap: 8px; } .scores th, .scores td { padding-left: var(--gap); padding-right: var(--gap); }
th, td { padding: 9px 10px; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child > * { border-bottom: 0; }
td.num, th.num { text-align: right; white-space: nowrap; }
tbody th { color: var(--ink); font-size: 14px; }
tbody th small, td small { color: var(--soft); font-weight: 400; font-size: 12.5px; display: block; }
.scores { padding: 6px 8px; margin-top: 14px; }
.scores tbody th { position: sticky; left: 0; background: var(--card); }
td.heat { background: color-mix(in srgb, var(--accent) calc(var(--v) * 42%), transparent); text-align: center; }
th.part { text-align: center; } th.part i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; background: var(--c); margin-right: 5px; }
.bar { position: relative; height: 20px; min-width: 120px; } .scores .bar { min-width: 84px; }
.bar::before { content: ""; position: absolute; inset: 6px 0; border-radius: 4px; background: var(--well); }
.bar u { position: absolute; left: 0; top: 6px; bottom: 6px; border-radius: 4px; background: var(--accent); min-width: 2px; }
.bar s { position: absolute; top: 1px; bottom: 1px; width: 2.5px; margin-left: -1.25px; background: var(--ink); border-radius: 2px; }
.bar s.low { background: none; border-left: 2.5px dotted var(--ink); border-radius: 0; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--soft); margin-top: 10px; }
.key span { display: inline-flex; align-items: center; gap: 7px; }
.key u { width: 22px; height: 8px; border-radius: 4px; background: var(--accent); }
.key s { width: 2.5px; height: 16px; background: var(--ink); border-radius: 2px; }
.key s.low { background: none; border-left: 2.5px dotted var(--ink); }
.stages { padding: 8px 16px; }
.stages tbody th { white-space: normal; }
.notes { margin: 0 0 20px; padding: 12px 18px 12px 34px; border-left: 3px solid var(--accent); background: var(--card); border-radius: 0 9px 9px 0; font-size: 14.5px; }
details { margin-top: 12px; }
details.card { padding: 0 16px; }
summary { cursor: pointer; padding: 13px 0; font-weight: 580; }
summary span { color: var(--soft); font-weight: 400; }
details .scroll { padding-bottom: 12px; }
.tree td, .tree th { padding: 4px 10px 4px 0; font-size: 13px; vertical-align: top; }
.tree th { color: var(--soft); font-weight: 450; width: 1%; padding-right: 28px; }
.tree td { overflow-wrap: anywhere; }
pre { margin: 0; padding: 13px 16px; background: var(--well); border-radius: 10px; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { padding-top: 26px; padding-bottom: 40px; color: var(--soft); font-size: 13px; }
footer p { border-top: 1px solid var(--line); padding-top: 16px; max-width: none; }
@media (max-width: 720px) {
  main, .masthead, nav > div, footer { padding-left: 16px; padding-right: 16px; }
  .masthead { padding-top: 26px; padding-bottom: 18px; }
  .masthead > p.lead { font-size: 16.5px; }
  .stats { display: grid; grid-template-columns: 1fr 1fr; gap: 14px 18px; }
  .stats .value { font-size: 23px; }
  .hybrid { padding: 12px; } .sources { gap: 5px; }
  .sources figcaption span { display: none; } .sources figcaption { font-size: 11.5px; }
  .charts { grid-template-columns: 1fr; }
  .pairs { grid-template-columns: 1fr 1fr; gap: 14px 10px; }
  .attention .maps { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 9px 8px; }
  .attention .maps figcaption { font-size: 11px; gap: 0 4px; letter-spacing: -.015em; }
  .attention i { width: 8px; height: 8px; }
  .bar, .scores .bar { min-width: 72px; }
  .stages .bar, .small .bar { min-width: 36px; }
  .stages { padding: 4px 6px; } .scores { --gap: 6px; }
}
@media (min-width: 721px) and (max-width: 980px) {
  .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print {
  nav { display: none; } .hybrid, .chart, .card, figure { break-inside: avoid; box-shadow: none; }
}
"""
