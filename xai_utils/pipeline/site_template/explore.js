// The scores of single images: one point an image, two methods against each other; a chosen image is shown with both maps.
(() => {
  "use strict";
  const TILE = 160; // pixels of a shown picture, as in site.css
  const make = (name, text = "", about = {}) => Object.assign(document.createElement(name), { textContent: text }, about);

  function picture(data, file, place, label) {
    const [row, column] = [Math.floor(place / data.columns), place % data.columns];
    const tile = make("div", "", { className: "tile" });
    tile.setAttribute("role", "img");
    tile.setAttribute("aria-label", label);
    tile.style.backgroundImage = `url("${encodeURI(file)}")`;
    tile.style.backgroundSize = `${data.columns * TILE}px auto`;
    if (data.images.length < data.columns) tile.style.backgroundSize = `${data.images.length * TILE}px auto`;
    tile.style.backgroundPosition = `-${column * TILE}px -${row * TILE}px`;
    const figure = make("figure");
    figure.append(tile, make("figcaption", label));
    return figure;
  }

  const shown = (value) => (value === null ? "–" : Number(value.toPrecision(3)).toString());

  document.addEventListener("DOMContentLoaded", () => {
    const data = JSON.parse(document.getElementById("data").textContent);
    const [metric, across, up] = ["metric", "across", "up"].map((id) => document.getElementById(id));
    const [plot, seen, told] = ["plot", "seen", "told"].map((id) => document.getElementById(id));
    const body = document.querySelector("#images tbody");
    let chosen = 0;

    for (const [name, about] of Object.entries(data.metrics)) metric.append(new Option(`${about.label} ${about.arrow}`, name));
    for (const select of [across, up]) for (const name of Object.keys(data.scores)) select.append(new Option(name, name));
    [metric.value, across.value, up.value] = [data.first.metric, data.first.across, data.first.up];

    const score = (select, place) => data.scores[select.value][metric.value][place];

    function show(place) {
      chosen = place;
      const { image, class: name } = data.images[place];
      seen.replaceChildren(
        picture(data, data.pictures, place, `image ${image}: ${name}`),
        ...[across, up].map((select) => picture(data, data.sheets[select.value], place, `${select.value}: ${shown(score(select, place))}`)),
      );
      for (const row of body.rows) row.classList.toggle("chosen", Number(row.dataset.place) === place);
      location.replace(`#${[metric.value, across.value, up.value, place].map(encodeURIComponent).join("&")}`);
    }

    function list(points) {
      const rows = points.map(({ place, number, name, x, y }) => {
        const row = make("tr");
        row.dataset.place = place;
        const head = make("th");
        head.dataset.value = `${name} ${number}`;
        const button = make("button", `${name}, ${number}`, { type: "button" });
        button.addEventListener("click", () => show(place));
        head.append(button);
        const cells = [x, y, y - x].map((value) => {
          const cell = make("td", shown(value));
          cell.dataset.value = value;
          return cell;
        });
        row.append(head, ...cells);
        return row;
      });
      body.replaceChildren(...rows);
      for (const [id, text] of [["head-across", across.value], ["head-up", up.value]]) {
        const head = document.getElementById(id);
        (head.querySelector("button") || head).textContent = text;
      }
      for (const head of document.querySelectorAll("#images thead th")) head.removeAttribute("aria-sort");
    }

    function draw() {
      const about = data.metrics[metric.value];
      const points = data.images
        .map(({ image: number, class: name }, place) => ({ place, number, name, x: score(across, place), y: score(up, place) }))
        .filter(({ x, y }) => x !== null && y !== null);
      const all = points.flatMap(({ x, y }) => [x, y]);
      const ends = [Math.min(...all), Math.max(...all)];
      const better = points.filter(({ x, y }) => (about.arrow === "↓" ? y < x : y > x)).length;
      told.textContent = about.arrow
        ? `${up.value} is better on ${better} of ${points.length} images: those ${about.arrow === "↓" ? "below" : "above"} the line.`
        : `${points.length} images; neither direction is better.`;
      const colour = getComputedStyle(document.body).color;
      const title = { x: across.value, y: up.value };
      const axis = (field) => ({ field, type: "quantitative", title: `${title[field]}: ${about.label} ${about.arrow}`, scale: { domain: ends, zero: false, nice: true } });
      const spec = {
        width: "container", height: 380, background: null, autosize: { type: "fit", contains: "padding" },
        config: { view: { stroke: null }, axis: { labelColor: colour, titleColor: colour, gridOpacity: 0.25, domainColor: colour, tickColor: colour } },
        layer: [
          { data: { values: [{ x: ends[0], y: ends[0] }, { x: ends[1], y: ends[1] }] },
            mark: { type: "line", strokeDash: [4, 4], color: colour, opacity: 0.6 },
            encoding: { x: axis("x"), y: axis("y") } },
          { data: { values: points }, mark: { type: "point", filled: true, size: 75, opacity: 0.75, cursor: "pointer" },
            encoding: {
              x: axis("x"), y: axis("y"),
              color: { value: "#4c8ff0" },
              tooltip: [{ field: "name", title: "class" }, { field: "number" }, { field: "x", title: across.value, format: ".3f" }, { field: "y", title: up.value, format: ".3f" }],
            } },
        ],
      };
      vegaEmbed(plot, spec, { ast: true, actions: false, renderer: "svg" }).then(({ view }) => {
        view.addEventListener("click", (_, item) => { if (item?.datum?.place !== undefined) show(item.datum.place); });
      });
      list(points);
      show(chosen);
    }

    const given = decodeURIComponent(location.hash.slice(1)).split("&"); // a link reopens what was seen
    if (given.length === 4 && given[0] in data.metrics && given[1] in data.scores && given[2] in data.scores && data.images[given[3]]) {
      [metric.value, across.value, up.value] = given;
      chosen = Number(given[3]);
    }
    for (const select of [metric, across, up]) select.addEventListener("change", draw);
    document.getElementById("theme").addEventListener("click", () => setTimeout(draw));
    draw();
  });
})();
