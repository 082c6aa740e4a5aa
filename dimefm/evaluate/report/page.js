"use strict";
// Adds to each table a button that copies it, for a spreadsheet. Without scripts the page is whole.
for (const table of document.querySelectorAll("table")) {
  const bar = table.closest(".table").querySelector(".bar");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy the table " + bar.textContent.trim());
  button.addEventListener("click", async () => {
    const rows = [...table.rows].map((row) =>
      [...row.cells].map((cell) => cell.textContent).join("\t"));
    let copied = true;
    try {
      await navigator.clipboard.writeText(rows.join("\n"));
    } catch {
      const selection = getSelection();
      selection.selectAllChildren(table);
      copied = document.execCommand("copy");
      selection.removeAllRanges();
    }
    button.textContent = copied ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
  bar.append(button);
}
