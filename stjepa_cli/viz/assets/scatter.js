(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("points").textContent);
  const box = document.querySelector(".map"), canvas = box.querySelector("canvas"), card = box.querySelector(".card");
  const entries = [...document.querySelectorAll(".legend button")];
  const pen = canvas.getContext("2d"), count = data.x.length, SHAPES = 3, MARGIN = 22, MOST_ZOOM = 60;
  const radius = count < 300 ? 6 : count < 2000 ? 4.5 : 3;
  const shown = new Set();  // groups that stand out; all of them if there is none
  let width = 0, height = 0, zoom = 1, left = 0, top = 0, chosen = -1, pinned = false, colours = [], ink = "", quiet = "";

  const screenX = i => MARGIN + left + data.x[i] / data.size * (width - 2 * MARGIN) * zoom;
  const screenY = i => MARGIN + top + data.y[i] / data.size * (height - 2 * MARGIN) * zoom;
  const stands = group => shown.size === 0 || shown.has(group);

  function readColours() {
    const style = getComputedStyle(box), names = data.ordered ? "--q" : "--p";
    colours = [...Array(8).keys()].map(k => style.getPropertyValue(names + k).trim());
    ink = style.getPropertyValue("--ink").trim();
    quiet = style.getPropertyValue("--other").trim();
  }

  function mark(x, y, r, shape) {
    if (shape === 1) pen.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
    else if (shape === 2) {
      pen.moveTo(x, y - r * 1.2); pen.lineTo(x + r * 1.15, y + r * 0.85); pen.lineTo(x - r * 1.15, y + r * 0.85); pen.closePath();
    } else { pen.moveTo(x + r, y); pen.arc(x, y, r, 0, 7); }
  }

  function drawGroup(group) {
    const rows = data.rows[group], other = group === data.legend;
    pen.fillStyle = other ? quiet : colours[group % 8];
    pen.globalAlpha = stands(group) ? (other ? 0.6 : 0.85) : 0.12;
    pen.beginPath();
    for (const i of rows) {
      const x = screenX(i), y = screenY(i);
      if (x > -9 && y > -9 && x < width + 9 && y < height + 9) mark(x, y, radius, other ? 0 : Math.floor(group / 8) % SHAPES);
    }
    pen.fill();
  }

  function draw() {
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const groups = [data.legend, ...Array(data.legend).keys()];  // the rest and large groups first, small ones above them
    groups.filter(group => !stands(group)).forEach(drawGroup);
    groups.filter(stands).forEach(drawGroup);
    pen.globalAlpha = 1;
    if (chosen < 0) return;
    pen.strokeStyle = ink;
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (const near of data.near[chosen] || []) {
      pen.moveTo(screenX(chosen), screenY(chosen)); pen.lineTo(screenX(near), screenY(near));
    }
    pen.stroke();
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(screenX(chosen), screenY(chosen), radius + 5, 0, 7);
    pen.stroke();
  }

  function picture(i, large) {
    const source = data.thumbnails[i];
    if (!source) {
      if (!large) return null;
      const none = document.createElement("div");
      none.className = "none";
      none.textContent = i in data.thumbnails ? "cannot be read" : "no picture on this page";
      return none;
    }
    const image = new Image();
    image.src = "data:image/webp;base64," + source;
    image.alt = "";
    return image;
  }

  function line(text, kind) {
    const part = document.createElement(kind);
    part.textContent = text;
    return part;
  }

  function show(i) {
    chosen = i;
    card.hidden = i < 0;
    if (i >= 0) {
      const near = document.createElement("div");
      near.className = "near";
      near.append(...(data.near[i] || []).map(each => picture(each, false)).filter(Boolean));
      card.replaceChildren(picture(i, true), line(data.names[i], "b"));
      if (data.notes[i]) card.append(line(data.notes[i], "span"));
      if (near.childNodes.length) card.append(line("nearest:", "span"), near);
      place(screenX(i), screenY(i));
    }
    draw();
  }

  function place(x, y) {
    const wide = card.offsetWidth, high = card.offsetHeight, gap = radius + 12;
    let at = x + gap, down = y - high / 2;
    if (at + wide > width) at = x - gap - wide;
    if (at < 0) {  // no room on either side: above or below
      at = x - wide / 2;
      down = y + gap + high > height ? y - gap - high : y + gap;
    }
    card.style.left = Math.max(0, Math.min(width - wide, at)) + "px";
    card.style.top = Math.max(0, Math.min(height - high, down)) + "px";
  }

  function nearest(x, y, within) {
    let best = -1, least = within * within;
    for (let group = 0; group < data.rows.length; group++) {
      if (!stands(group)) continue;
      for (const i of data.rows[group]) {
        const distance = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
        if (distance < least) { least = distance; best = i; }
      }
    }
    return best;
  }

  function zoomBy(factor, x, y) {
    const next = Math.max(1, Math.min(MOST_ZOOM, zoom * factor));
    left = (left + MARGIN - x) * next / zoom + x - MARGIN;
    top = (top + MARGIN - y) * next / zoom + y - MARGIN;
    zoom = next;
    clamp();
    show(chosen);
  }

  function clamp() {
    left = Math.min(0, Math.max(-(width - 2 * MARGIN) * (zoom - 1), left));
    top = Math.min(0, Math.max(-(height - 2 * MARGIN) * (zoom - 1), top));
    canvas.style.touchAction = zoom > 1 ? "none" : "pan-y";  // a finger scrolls the page until the map is enlarged
  }

  function reveal(i) {  // the keyboard may lead out of the enlarged part
    if (screenX(i) < MARGIN || screenX(i) > width - MARGIN) left += width / 2 - screenX(i);
    if (screenY(i) < MARGIN || screenY(i) > height - MARGIN) top += height / 2 - screenY(i);
    clamp();
  }

  function resize() {
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    clamp();
    show(chosen);
  }

  let start = null;
  const at = event => [event.clientX - canvas.getBoundingClientRect().left, event.clientY - canvas.getBoundingClientRect().top];
  canvas.addEventListener("pointerdown", event => {
    start = {x: event.clientX, y: event.clientY, left, top, moved: false};
    if (zoom > 1) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    if (start && zoom > 1) {
      const dx = event.clientX - start.x, dy = event.clientY - start.y;
      start.moved ||= Math.abs(dx) + Math.abs(dy) > 6;
      if (start.moved) { left = start.left + dx; top = start.top + dy; clamp(); show(chosen); }
    } else if (event.pointerType === "mouse" && !pinned) {
      const found = nearest(...at(event), 18);
      if (found !== chosen) show(found);
    }
  });
  canvas.addEventListener("pointerup", event => {
    if (start && !start.moved) {
      const found = nearest(...at(event), event.pointerType === "mouse" ? 18 : 30);
      pinned = found >= 0;
      show(found);
    }
    start = null;
  });
  canvas.addEventListener("pointercancel", () => { start = null; });
  canvas.addEventListener("pointerleave", event => { if (!pinned && event.pointerType === "mouse") show(-1); });
  canvas.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 300), ...at(event));
  }, {passive: false});
  canvas.addEventListener("keydown", event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (event.key === "Escape") { pinned = false; show(-1); }
    if (!way) return;
    event.preventDefault();
    pinned = true;
    if (chosen < 0) return show(nearest(width / 2, height / 2, width + height));
    let best = chosen, least = Infinity;
    for (const i of data.rows.flatMap((rows, group) => stands(group) ? rows : [])) {
      const dx = screenX(i) - screenX(chosen), dy = screenY(i) - screenY(chosen);
      const ahead = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (i !== chosen && ahead > 0 && aside <= ahead && ahead + aside < least) { least = ahead + aside; best = i; }
    }
    reveal(best);
    show(best);
  });
  entries.forEach((entry, group) => entry.addEventListener("click", () => {
    if (!shown.delete(group)) shown.add(group);
    entry.setAttribute("aria-pressed", String(shown.has(group)));
    draw();
  }));
  box.querySelector(".in").addEventListener("click", () => zoomBy(1.6, width / 2, height / 2));
  box.querySelector(".out").addEventListener("click", () => zoomBy(1 / 1.6, width / 2, height / 2));
  box.querySelector(".all").addEventListener("click", () => { zoom = 1; left = top = 0; clamp(); show(chosen); });
  matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => { readColours(); draw(); });
  new ResizeObserver(resize).observe(canvas);
  readColours();
  resize();
})();
