// What the theme leaves out for the keyboard and for those who hear a page.
document.addEventListener("DOMContentLoaded", () => {
  for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.setAttribute("aria-level", "2");
  for (const [place, name] of [[".sidebar-drawer", "Pages of the site"], [".toc-drawer", "On this page"]])
    document.querySelector(place)?.setAttribute("aria-label", name);
  const scrolling = [["pre", "Code"], [".cell_output > .output", "Output"], ["table.docutils", "Table"], ["div.math", "Formula"]];
  for (const [place, name] of scrolling)
    for (const part of document.querySelectorAll(`.content ${place}`)) {
      if (part.scrollWidth <= part.clientWidth) continue;
      part.tabIndex = 0;
      part.setAttribute("aria-label", name);
      if (part.tagName !== "TABLE") part.setAttribute("role", "group");
    }
});
