"""The report's style sheet: one ink, two accents (one per arm), light and dark paper."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1e1d1b;--soft:#6d6860;--rule:#e5e1d8;--wash:#f4f0e8;
  --teacher:#4a4741;--lcm:#3b6ea5;--rg:#c4492a;--real:#8b8578;--shade:rgba(40,30,10,.10)}
@media(prefers-color-scheme:dark){:root{--paper:#171614;--card:#1f1d1b;--ink:#eeeae2;--soft:#a19a8e;--rule:#33302b;--wash:#24211e;
  --teacher:#c9c3b7;--lcm:#86b6e4;--rg:#f28b67;--real:#8f897d;--shade:rgba(0,0,0,.5)}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:clamp(28px,6vw,72px) clamp(18px,4vw,40px) 48px}
h1,h2,.big{font-family:ui-serif,"Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;font-weight:500;letter-spacing:-.012em}
h1{font-size:clamp(1.75rem,4.2vw,2.9rem);line-height:1.14;margin:.3em 0 .55em;max-width:24em;text-wrap:balance}
h2{font-size:1.5rem;margin:0 0 .2em}
section{margin-top:60px;padding-top:26px;border-top:1px solid var(--rule)}
.eyebrow{margin:0;color:var(--rg);font-size:.78rem;letter-spacing:.1em;text-transform:uppercase;font-weight:600}
.lead{max-width:46em;color:var(--soft);font-size:1.06rem;margin:0 0 30px}
.note{max-width:52em;color:var(--soft);margin:0 0 20px;font-size:.95rem}
abbr{text-decoration:none;border-bottom:1px dotted var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px}
.tiles-of{grid-column:1/-1;margin:0 0 -4px;font-weight:600;color:var(--rg);font-size:.95rem}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:15px 18px 13px;display:flex;flex-direction:column}
.tile p{margin:0}
.what{font-size:.86rem;color:var(--soft);line-height:1.35}
.big{font-size:2.15rem;line-height:1.25}
.detail{font-size:.82rem;color:var(--soft);margin-top:auto!important;padding-top:6px}
.findings{margin:22px 0 0;padding:0;list-style:none;max-width:56em}
.findings li{padding-left:16px;border-left:2px solid var(--rg);margin:.4em 0}
.interval{display:block;width:100%;height:10px;overflow:visible}
.interval line{vector-effect:non-scaling-stroke}
.interval .axis{stroke:var(--rule);stroke-width:2}
.interval .tie{stroke:var(--soft);stroke-width:1}
.interval .range{stroke:var(--soft);stroke-width:4;opacity:.55}
.interval .at{stroke:var(--ink);stroke-width:2}
.interval.better .range{stroke:var(--rg);opacity:1}
.wide{overflow-x:auto;margin:0 -6px;padding:0 6px 6px}
table{border-collapse:collapse}
.grid{width:100%;min-width:760px;table-layout:fixed}
.grid th{font-weight:600;text-align:left;font-size:.9rem}
.grid td,.grid .steps th{padding:0 3px}
.grid .gap{width:16px;padding:0}
.grid .steps th{color:var(--soft);font-weight:400;font-size:.82rem;text-align:center}
.grid .caption th{font-weight:400;font-size:.92rem;padding:15px 0 5px;color:var(--ink);overflow-wrap:anywhere}
.grid td{text-align:center;vertical-align:top}
.grid img{display:block;width:100%;aspect-ratio:1;border-radius:4px;background:var(--wash);
  transition:transform .16s ease,box-shadow .16s ease;position:relative}
.grid.crisp img{image-rendering:pixelated}
.grid img:hover{transform:scale(1.9);z-index:2;box-shadow:0 10px 34px var(--shade)}
.grid .caption bdi{position:sticky;left:0;display:inline-block;max-width:min(100%,calc(100vw - 44px))}
.grid tr:last-child img:hover{transform-origin:center bottom}
.grid td:first-child img:hover{transform-origin:left center}
.grid td:last-child img:hover{transform-origin:right center}
.grid span{font-size:.74rem;color:var(--soft);line-height:1.5}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:30px 36px}
.panel{width:100%;height:auto;overflow:visible;font-family:inherit}
.panel-title{font-size:14.5px;font-weight:600;fill:var(--ink)}
.panel-note,.tick{font-size:11.5px;fill:var(--soft)}
.panel .rule{stroke:var(--rule)}
.panel .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.panel .whisker{stroke-width:1.3;opacity:.6}
.panel .level{stroke-dasharray:5 4;stroke-width:1.5}
.panel .band{opacity:.10}
.panel .end{font-size:12px;font-weight:600}
.line.arm-rg,.whisker.arm-rg{stroke:var(--rg)}
.dot.arm-rg,.end.arm-rg{fill:var(--rg)}
.line.arm-lcm,.whisker.arm-lcm{stroke:var(--lcm)}
.dot.arm-lcm,.end.arm-lcm{fill:var(--lcm)}
.line.arm-lrm{stroke:var(--ink)}
.dot.arm-lrm,.end.arm-lrm{fill:var(--ink)}
.level.arm-teacher{stroke:var(--teacher)}
.band.arm-teacher,.end.arm-teacher{fill:var(--teacher)}
.numbers,.stages{width:100%;font-size:.88rem}
.numbers th,.numbers td{text-align:right;padding:5px 7px;white-space:nowrap;vertical-align:top}
.numbers thead th{font-weight:600;vertical-align:bottom}
.numbers thead tr+tr th{font-weight:400;color:var(--soft);font-size:.8rem;padding-top:0}
.numbers thead tr:last-child th,.stages thead th{border-bottom:1px solid var(--ink)}
.numbers th[scope=row]{text-align:left;padding-left:10px}
.numbers .start{padding-left:20px}
.numbers i{display:block;font-weight:400;font-size:.74rem;color:var(--soft);font-style:normal}
.numbers small{display:block;color:var(--soft);font-size:.72rem;line-height:1.2}
.numbers .first>*{border-top:1px solid var(--rule)}
.numbers tbody tr.first:first-child>*{border-top:0}
.numbers .arm-rg b{color:var(--rg)}
.numbers .arm-lcm b{color:var(--lcm)}
.numbers .focus>*{background:var(--wash)}
.numbers .win{min-width:76px}
.numbers .win .interval{width:62px;margin:2px 0 0 auto;height:8px}
dl{margin:0 0 26px;display:grid;gap:7px}
dl div{display:grid;grid-template-columns:8.5em 1fr;gap:12px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.stages th,.stages td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--rule);white-space:nowrap}
.stages td:last-child{width:40%;color:var(--soft);white-space:normal}
.digest,code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.86em}
pre{background:var(--wash);border-radius:8px;padding:14px 18px;overflow-x:auto;line-height:1.5}
summary{cursor:pointer;color:var(--soft)}
footer{margin-top:64px;color:var(--soft);font-size:.85rem}
@media(prefers-reduced-motion:reduce){.grid img{transition:none}}
@media print{section{break-inside:avoid-page}.grid img:hover{transform:none}}
"""
