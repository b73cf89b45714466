"use strict";
// Figures: each <figure> holds its data as JSON, a place to draw it, and buttons for its axes.
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const plot = figure.querySelector(".plot");
  const chart = JSON.parse(figure.querySelector("script").textContent);
  Plotly.newPlot(plot, chart.data, chart.layout, {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: figure.dataset.chart },
  });
  // Ticks are set for the whole range: after a zoom, or on a linear axis, plotly sets its own.
  plot.on("plotly_relayout", (change) => {
    const update = {};
    for (const axis of ["xaxis", "yaxis"]) {
      const own = chart.layout[axis].tickvals && plot._fullLayout[axis].type === "log";
      const zoomed = axis + ".range[0]" in change || axis + ".range" in change;
      const mode = own && !zoomed ? "array" : "auto";
      const asked = zoomed || axis + ".autorange" in change || axis + ".type" in change;
      if (asked && plot._fullLayout[axis].tickmode !== mode) update[axis + ".tickmode"] = mode;
    }
    if (Object.keys(update).length) Plotly.relayout(plot, update);
  });
  for (const button of figure.querySelectorAll("button[data-axis]")) {
    const axis = button.dataset.axis;
    button.addEventListener("click", () => {
      const type = plot._fullLayout[axis].type === "log" ? "linear" : "log";
      Plotly.relayout(plot, { [axis + ".type"]: type, [axis + ".autorange"]: true });
      button.textContent = axis[0] + ": " + type;
    });
  }
}
// Tables: a click on a head sorts by that column, another one turns the order; blanks stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return text !== "" && isFinite(text) ? Number(text) : text;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = typeof x === typeof y && typeof x === "number"
        ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}
