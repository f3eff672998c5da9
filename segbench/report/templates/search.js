// The field for searching is shown where scripts run. It hides the rows that lack one of the words.
const field = document.querySelector(".search");
if (field) {
  field.hidden = false;
  const rows = [...document.querySelectorAll("table.searchable tbody tr")].map(row => [row.textContent.toLowerCase(), row]);
  const search = () => {
    const words = field.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const [text, row] of rows) {
      row.hidden = !words.every(word => text.includes(word));
      found += row.hidden ? 0 : 1;
    }
    field.querySelector("[role=status]").textContent = words.length ? `${found} of ${rows.length} lines` : "";
  };
  field.addEventListener("input", search);
  search();
}
