"use strict";
// Tables sort by a click on a column's head; without this script they are plain tables.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

function sort(table, heads, column) {
  const numeric = heads[column].classList.contains("number");
  const before = heads[column].getAttribute("aria-sort");
  // figures begin with the highest, names with A
  const first = numeric ? "descending" : "ascending";
  const second = numeric ? "ascending" : "descending";
  const order = before === first ? second : first;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.value ? Number(cell.dataset.value) : null;
  };
  const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // undefined ones last
    return sign * (numeric ? a - b : a.localeCompare(b, "en"));
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// Paper cannot be opened by a click.
const closed = [];
const print = matchMedia("print");
function setOpen() {
  if (print.matches) {
    closed.push(...document.querySelectorAll("details:not([open])"));
    closed.forEach((details) => { details.open = true; });
  } else {
    closed.splice(0).forEach((details) => { details.open = false; });
  }
}
print.addEventListener("change", setOpen);
setOpen();
