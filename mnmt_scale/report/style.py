"""The page's stylesheet: light and dark by the reader's own setting, print as light, nothing fetched from anywhere."""

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #23262b; --soft: #666d78; --line: #d9dbde; --tint: #f1f2f0;
  --accent: #2b6ca3; --warn: #9a5b00; --warn-tint: #fdf3e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191d; --ink: #dfe2e6; --soft: #969eaa; --line: #3b4048;
  --tint: #202329; --accent: #7db4e0; --warn: #e5b567; --warn-tint: #2c2618; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f3f3f3; }
  details > *, .tall { display: block; max-height: none } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
main { max-width: 66rem; margin: 0 auto; padding: 2.2rem 1.4rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere }
p { margin: .4rem 0 .8rem; max-width: 48rem }
a { color: var(--accent) }
nav { margin: .8rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem }
.soft, figcaption { color: var(--soft); font-size: .88rem }
.notes { background: var(--warn-tint); border-left: 3px solid var(--warn); padding: .55rem 1rem; margin: 1rem 0 }
.notes ul { margin: .2rem 0; padding-left: 1.1rem }
figure { margin: 1.1rem 0 1.5rem }
figcaption { margin-top: .35rem; max-width: 50rem }
svg.figure { display: block; width: 100%; height: auto; stroke-linejoin: round }
svg.figure text { font-family: inherit !important }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1rem }
.scroll { overflow-x: auto; margin: .6rem 0 1rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid var(--line) }
th.group { text-align: center; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, td.text, th.text { text-align: left; padding-left: .2rem }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 5rem; max-width: 34rem }
.tall { max-height: 34rem; overflow-y: auto }
.tall thead { position: sticky; top: 0; background: var(--paper) }
tbody tr:hover { background: var(--tint) }
td.none { color: var(--soft) }
td.best { font-weight: 650 }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em }
details { margin: .6rem 0 } summary { cursor: pointer; color: var(--accent) }
pre { background: var(--tint); padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.4 }
"""
