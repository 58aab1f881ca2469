"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const touches = matchMedia("(pointer: coarse)").matches;

  // --- Light and dark -------------------------------------------------------------------------

  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const store = (mode) => { try { localStorage.setItem("theme", mode); } catch { /* a file's page may have none */ } };
  const mode = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");

  const showMode = () => {
    const isDark = mode() === "dark";
    byId("theme").textContent = isDark ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", isDark ? "Use light colours" : "Use dark colours");
    byId("theme").setAttribute("aria-pressed", String(isDark));
    recolor(mode());
  };

  // --- Figures --------------------------------------------------------------------------------

  let payload = null;
  const drawn = [];
  const recolor = (which) => {
    for (const plot of drawn) Plotly.relayout(plot, { template: payload.templates[which] });
  };

  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const draw = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    for (const plot of document.querySelectorAll("[data-figure]")) {
      const figure = payload.figures[plot.dataset.figure];
      const layout = { ...figure.layout, template: payload.templates[mode()] };
      // A finger that moves over a figure scrolls the page.
      if (touches) layout.dragmode = false;
      await Plotly.newPlot(plot, figure.data, layout, { displayModeBar: false, responsive: true });
      drawn.push(plot);
      await new Promise((done) => setTimeout(done));
    }
  };

  // A browser lays a page out for paper without telling its scripts, so paper's width comes first.
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    for (const plot of drawn) {
      const size = { width: plot.clientWidth, height: plot.clientHeight };
      Plotly.relayout(plot, { template: payload.templates.light, ...size });
    }
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    const size = { width: null, height: null, autosize: true };
    for (const plot of drawn) Plotly.relayout(plot, { template: payload.templates[mode()], ...size });
  });

  // --- The table of trials --------------------------------------------------------------------

  const PAGE = 25;
  const tabulate = (columns) => {
    const table = byId("trial-table").querySelector("table");
    const [head, body] = [table.tHead, table.tBodies[0]];
    const size = columns[0].values.length;
    const shown = (column, row) => {
      const value = column.values[row];
      if (value === null) return "";
      if (!column.numeric || Number.isInteger(value)) return String(value);
      return Math.abs(value) < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
    };
    const style = (cell, column) => {
      cell.classList.toggle("text", !column.numeric);
      cell.classList.toggle("unprinted", !column.printed);
    };
    const texts = Array.from({ length: size }, (_, row) =>
      columns.map((column) => shown(column, row)).join(" ").toLowerCase());
    let rows = [...texts.keys()];
    let sorted = { index: 0, sign: 1 };
    let first = 0;

    const arrange = () => {
      const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      rows = [...texts.keys()].filter((row) => words.every((word) => texts[row].includes(word)));
      const { values, numeric } = columns[sorted.index];
      rows.sort((a, b) => {
        const [one, other] = [values[a], values[b]];
        if (one === null || other === null) return (one === null) - (other === null) || a - b;
        const order = numeric ? one - other : one < other ? -1 : Number(one > other);
        return sorted.sign * order || a - b;
      });
      first = 0;
      fill();
    };

    const fill = () => {
      const page = rows.slice(first, first + PAGE);
      body.replaceChildren(...page.map((row) => {
        const line = document.createElement("tr");
        for (const [index, column] of columns.entries()) {
          const cell = document.createElement(index ? "td" : "th");
          if (!index) cell.scope = "row";
          style(cell, column);
          cell.textContent = shown(column, row);
          line.append(cell);
        }
        return line;
      }));
      const range = rows.length ? `${first + 1} to ${first + page.length}` : "none";
      byId("shown").textContent = `${range} of ${rows.length.toLocaleString("en")} trials`;
      byId("previous").disabled = first === 0;
      byId("next").disabled = first + PAGE >= rows.length;
    };

    const headings = columns.map((column, index) => {
      const heading = document.createElement("th");
      const button = document.createElement("button");
      heading.scope = "col";
      style(heading, column);
      button.type = "button";
      button.textContent = column.name.replaceAll("_", " ");
      button.addEventListener("click", () => {
        sorted = { index, sign: sorted.index === index ? -sorted.sign : 1 };
        markSorted();
        arrange();
      });
      heading.append(button);
      return heading;
    });
    const markSorted = () => {
      for (const [index, heading] of headings.entries()) {
        if (index === sorted.index) heading.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending");
        else heading.removeAttribute("aria-sort");
      }
    };
    const line = document.createElement("tr");
    line.append(...headings);
    head.append(line);
    byId("search").addEventListener("input", arrange);
    byId("previous").addEventListener("click", () => { first -= PAGE; fill(); });
    byId("next").addEventListener("click", () => { first += PAGE; fill(); });
    markSorted();
    arrange();
  };

  // --- A page that is served while its run goes on --------------------------------------------

  const follow = async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== root.dataset.version) location.reload();
    } catch { /* the server has ended; the page stays as it is */ }
  };

  const start = async () => {
    if (stored()) root.dataset.theme = stored();
    byId("theme").hidden = false;
    byId("theme").addEventListener("click", () => {
      root.dataset.theme = mode() === "dark" ? "light" : "dark";
      store(root.dataset.theme);
      showMode();
    });
    prefersDark.addEventListener("change", showMode);
    showMode();
    if (root.dataset.version) setInterval(follow, 2000);
    if (typeof DecompressionStream === "undefined") {
      byId("trouble").textContent = "This browser is too old to draw the figures; the text is complete.";
      byId("trouble").hidden = false;
      return;
    }
    payload = JSON.parse(await unpack("data"));
    if (payload.table && payload.table.length) tabulate(payload.table);
    await draw();
    root.dataset.drawn = "yes";
  };
  start();
})();
