"""How the page looks, and what its widgets lack for those who use the keyboard or a screen reader.

Colours are those of the JupyterLab theme (voila: `?theme=dark`), with those of the light one where there is none.
"""

# Names for sliders, which have none; groups; the line whose changes are read aloud. Run when the style is there.
SCRIPT = """
const page = this.closest('.xai-inspector');
const mend = () => {
  page.querySelectorAll('.widget-slider').forEach(slider => {
    const name = slider.querySelector('.widget-label').textContent;
    slider.querySelectorAll('.noUi-handle, .widget-readout').forEach(each => each.setAttribute('aria-label', name));
    slider.querySelectorAll('.widget-readout').forEach(each => each.setAttribute('role', 'textbox')); });
  page.querySelectorAll('.widget-upload input').forEach(input => input.tabIndex = -1);
  page.querySelectorAll('button.widget-upload').forEach(button => {  // counts the files that it holds: never any
    button.childNodes.forEach(each => { if (each.nodeType === 3) each.data = each.data.replace(' (0)', ''); });
    button.setAttribute('aria-label', button.textContent.trim()); });
  page.querySelectorAll('.progress').forEach(bar => { bar.setAttribute('aria-label', 'progress of the map'); });
  for (const [place, role, name] of [['.xai-status .widget-html-content', 'status', ''],
      ['.xai-side', 'group', 'network, image and class'], ['.xai-thumbnails', 'group', 'images to pick from'],
      ['.xai-display', 'group', 'display'], ['.xai-keeping', 'group', 'save and open'],
      ['.xai-column', 'group', 'method']])
    page.querySelectorAll(place).forEach((box, number) => {
      box.setAttribute('role', role);
      if (name) box.setAttribute('aria-label', ['.xai-side', '.xai-column'].includes(place)
        ? name + ' ' + (number + 1) : name); });
};
new MutationObserver(mend).observe(page, {childList: true, subtree: true});
mend();
const busy = () => page.setAttribute('aria-busy', page.classList.contains('xai-older'));
new MutationObserver(busy).observe(page, {attributeFilter: ['class']});
if (document.body.dataset.voila && !new URLSearchParams(location.search).has('theme'))
  document.head.append(Object.assign(document.createElement('link'), {rel: 'stylesheet',
    media: '(prefers-color-scheme: dark)', href: '/voila/api/themes/@jupyterlab/theme-dark-extension/index.css'}));
"""

# A click writes "x, y" into the page's field "pixel", which is a widget: the only way to Python without an extension.
CLICK = (
    "const box = this.getBoundingClientRect(), size = {size},"
    " at = (where, from, length) => Math.min(size - 1, Math.max(0, Math.floor((where - from) / length * size))),"
    " field = this.closest('.xai-inspector').querySelector('.xai-pixel input');"
    " field.value = at(event.clientX, box.left, box.width) + ', ' + at(event.clientY, box.top, box.height);"
    " field.dispatchEvent(new Event('change', {{bubbles: true}}))"
)

STYLE = """
.xai-inspector { --soft: var(--jp-ui-font-color2, #5b6670); --strong: var(--jp-ui-font-color1, #14202b);
  --pale: var(--jp-layout-color2, #eef1f4); --line: var(--jp-border-color2, #e3e7eb); --accent: #1c8a80;
  --bar: color-mix(in srgb, var(--accent) 40%, var(--pale));
  --bad: color-mix(in srgb, var(--jp-error-color0, #9d1c1c) 65%, var(--strong));
  --link: color-mix(in srgb, var(--accent) 75%, var(--strong)); /* mixed with the text's, or the dark has too little */
  color: var(--strong); align-items: flex-start; flex-flow: row wrap !important; gap: 20px;
  font: 13px/1.45 system-ui, sans-serif; max-width: 1500px; overflow: visible; box-sizing: border-box;
  padding-right: 16px; width: 100% }
.xai-inspector .widget-box, .xai-inspector .widget-html, .xai-inspector .widget-html-content { overflow: visible }
.xai-inspector .widget-html-content { line-height: 1.45; font: inherit; white-space: normal; width: 100% }
.xai-older .xai-own:not(:focus-within), .xai-older.xai-own { visibility: hidden }
.xai-inspector .told { color: var(--soft); font-size: 12px; margin: 0 0 4px }
.xai-inspector h2 { font-size: 12px; margin: 10px 0 2px; font-weight: 650; color: var(--soft); letter-spacing: .04em;
  text-transform: uppercase }
.xai-inspector h3 { font-size: 13px; margin: 4px 0 0; font-weight: 650; overflow-wrap: anywhere }
.xai-inspector p { margin: 2px 0 }
.xai-inspector a { color: var(--link); overflow-wrap: anywhere }
.xai-inspector :is(button, select, input, a, summary, [tabindex="0"], [contenteditable]):focus-visible {
  outline: 3px solid var(--accent) !important; outline-offset: 1px; box-shadow: 0 0 0 1px #fff !important }
.xai-inspector .xai-controls { flex: 1 1 270px; max-width: 300px; min-width: 0 }
.xai-inspector .xai-results { flex: 1 1 560px; min-width: 0 }
.xai-inspector :is(.xai-controls, .xai-column, .xai-display) .widget-inline-hbox { width: auto }
.xai-inspector .xai-controls .widget-label { min-width: 0; width: 84px }
.xai-inspector :is(.xai-column, .xai-display) .widget-label { font-size: 12px; min-width: 0 }
.xai-inspector .widget-readout { min-width: 34px }
.xai-inspector .noUi-handle { border-color: var(--soft) !important }
.xai-inspector select { background-image: url("data:image/svg+xml,\
%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E\
%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23888' stroke-width='2'/%3E%3C/svg%3E") }
.xai-inspector .xai-display { display: grid !important; gap: 2px 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)) }
.xai-inspector .xai-columns { display: grid !important; gap: 14px; grid-template-columns: repeat(4, minmax(0, 1fr)) }
.xai-inspector .xai-columns.two { grid-template-columns: repeat(2, minmax(0, 1fr)) }
.xai-inspector .xai-column { min-width: 0 }
.xai-inspector .xai-thumbnails { display: grid !important; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 4px }
.xai-inspector .xai-thumbnails button { width: auto; height: auto; aspect-ratio: 1; margin: 0; padding: 0;
  background-size: cover; color: #fff; font-size: 10px; line-height: 1.2; display: flex; align-items: flex-end;
  white-space: normal; overflow: hidden }
.xai-inspector .xai-thumbnails button { --foot: inset 0 -30px 14px -8px #000b; box-shadow: var(--foot) }
.xai-inspector .xai-thumbnails button.chosen {
  box-shadow: inset 0 0 0 3px var(--accent), inset 0 0 0 4px #fff, var(--foot) }
.xai-inspector .xai-card figure { max-width: 220px; margin: 0 auto 6px }
.xai-inspector figure { margin: 0 0 6px; min-width: 0 }
.xai-inspector figcaption { color: var(--soft); font-size: 12px; margin-top: 1px; overflow-wrap: anywhere }
.xai-inspector .pair { display: grid; grid-auto-columns: minmax(0, 1fr); grid-auto-flow: column; gap: 8px }
.xai-inspector .shot { position: relative; display: block; line-height: 0; background: var(--pale); border-radius: 4px;
  overflow: hidden; aspect-ratio: 1 }
.xai-inspector .shot img { width: 100%; height: 100%; display: block; max-width: none }
.xai-inspector .shot img[onclick] { cursor: crosshair }
.xai-inspector .shot i { position: absolute; width: 9px; height: 9px; margin: -6px 0 0 -6px; border: 2px solid #fff;
  border-radius: 50%; box-shadow: 0 0 0 1px #000, inset 0 0 0 1px #000; pointer-events: none }
.xai-inspector .shot svg { position: absolute; inset: 0; height: 100%; pointer-events: none; fill: none;
  stroke-linecap: square }
.xai-inspector .shot path { vector-effect: non-scaling-stroke }
.xai-inspector .shot.empty { display: flex; align-items: center; justify-content: center; color: var(--strong);
  line-height: 1.4; text-align: center; padding: 10px; box-sizing: border-box; overflow-wrap: anywhere }
.xai-inspector .bars { display: grid; grid-template-columns: 1fr 54px; gap: 2px 6px; margin: 6px 0 }
.xai-inspector .bars span { background: linear-gradient(90deg, var(--bar) var(--share), var(--pale) var(--share));
  border-radius: 3px; padding: 0 6px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.xai-inspector .bars b { font-weight: 500; text-align: right; font-variant-numeric: tabular-nums }
.xai-inspector .bars .chosen { outline: 2px solid var(--accent) }
.xai-inspector .strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, 1fr)); gap: 10px;
  max-width: 900px }
.xai-inspector svg { width: 100%; display: block; font-size: 10px; fill: var(--soft) }
.xai-inspector .panels { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: center }
.xai-inspector .panels figure { flex: 1 1 220px; max-width: 340px }
.xai-inspector .xai-error { color: var(--bad) }
.xai-inspector .note { border-left: 3px solid #d9a400; background: var(--pale); padding: 5px 10px; margin: 4px 0 }
.xai-inspector .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px;
  border: 1px solid #8888 }
.xai-inspector .wide { overflow-x: auto }
.xai-inspector table { border-collapse: collapse; font-size: 12.5px; margin: 4px 0 }
.xai-inspector :is(th, td) { text-align: right; padding: 1px 12px 1px 0; font-weight: 400;
  font-variant-numeric: tabular-nums }
.xai-inspector :is(th:first-child, td:first-child) { text-align: left }
.xai-inspector th { color: var(--soft) }
.xai-inspector table.numbers { width: 100% }
.xai-inspector table.numbers :is(th, td) { padding-right: 0; padding-left: 6px; vertical-align: top }
.xai-inspector table.numbers th:first-child { padding-left: 0 }
@media (max-width: 900px) { .xai-inspector .xai-controls { max-width: none }
  .xai-inspector .xai-columns { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .xai-inspector .xai-columns.two { grid-template-columns: minmax(0, 1fr) } }
@media (max-width: 480px) { /* names above what they name */
  .xai-inspector .xai-columns:not(.two) :is(.widget-dropdown, .widget-text) { flex-direction: column; height: auto }
  .xai-inspector .xai-columns:not(.two) :is(.widget-dropdown, .widget-text) > * { width: 100% !important;
    text-align: left }
  .xai-inspector .xai-columns:not(.two) :is(.widget-dropdown, .widget-text) > :is(select, input) { flex: 0 0 28px }
  .xai-inspector .xai-columns:not(.two) .widget-slider .widget-label { width: auto !important } }
"""
