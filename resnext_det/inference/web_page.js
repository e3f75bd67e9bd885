"use strict";

const settings = JSON.parse(document.body.dataset.settings);
const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const main = document.querySelector("main");
// white text on each of them has a contrast of 4.5 or more
const COLOURS = ["#b3261e", "#1f5fbf", "#1b7a3d", "#7b3fb5", "#8a5a00", "#b0217a", "#0b7480", "#50545c"];
const MASK_OPACITY = 0.45;

let shown = null; // the answer, with the image and the masks as pictures
let upload = null; // AbortController of the one under way

const colourOf = (detection) => COLOURS[detection.class % COLOURS.length];
const threshold = () => Number(element("threshold").value);

async function picture(url) {
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => { throw new Error("This browser cannot show the image."); });
  return image;
}

async function pictureOf(file) {
  const url = URL.createObjectURL(file);
  try {
    return await picture(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

function complain(words) {
  element("error").textContent = words;
  element("error").hidden = !words;
}

function choose(files) {
  if (files.length === 1) detect(files[0]);
  else complain(files.length ? "One image at a time, please." : "That is no file: save the image first.");
}

async function detect(file) {
  upload?.abort();
  const own = upload = new AbortController();
  complain("");
  element("status").textContent = `Looking at ${file.name} …`;
  main.setAttribute("aria-busy", "true");
  try {
    const result = await ask(file, own.signal);
    if (own.signal.aborted) return;
    shown = result;
    element("result").hidden = false;
    element("masks-choice").hidden = !shown.detections.some((d) => d.mask);
    show();
  } catch (error) {
    if (own.signal.aborted) return;
    shown = null;
    element("result").hidden = true;
    element("status").textContent = `Nothing to show for ${file.name}.`;
    complain(error.message);
  }
  main.removeAttribute("aria-busy");
}

async function ask(file, signal) {
  if (file.size > settings.max_bytes) {
    const [size, most] = [file.size, settings.max_bytes].map((n) => (n / 2 ** 20).toFixed(1));
    throw new Error(`The file has ${size} MB; at most ${most} MB are taken.`);
  }
  const response = await fetch("detect", {
    method: "POST", body: file, signal, headers: {"Content-Type": "application/octet-stream"},
  }).catch(() => { throw new Error("The server does not answer, or cut the upload off. Is it still running?"); });
  const answer = await response.json().catch(() => null);
  if (!response.ok || !answer) throw new Error(answer?.error ?? `The server failed (status ${response.status}).`);
  answer.image = await (answer.picture ? picture(answer.picture) : pictureOf(file));
  await Promise.all(answer.detections.map(async (d) => { if (d.mask) d.mask.image = await picture(d.mask.url); }));
  return answer;
}

function show() {
  element("threshold-value").textContent = threshold().toFixed(2);
  if (!shown) return;
  const kept = shown.detections.filter((d) => d.score >= threshold());
  const total = shown.detections.length;
  const best = total ? `, highest score ${shown.detections[0].score.toFixed(2)}` : "";
  const words = total ? `${kept.length} of ${total} detections shown${best}` : "Nothing was found";
  element("status").textContent =
    `${words}. ${shown.width} × ${shown.height} pixels, ${shown.seconds.toFixed(2)} s.`;
  list(kept);
  draw(kept);
}

function list(detections) {
  const rows = detections.map((d) => {
    const row = document.createElement("tr");
    const [name, score, box] = [0, 1, 2].map(() => row.insertCell());
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colourOf(d);
    name.append(swatch, d.name);
    score.textContent = d.score.toFixed(2);
    score.className = "number";
    const [x0, y0, x1, y1] = d.box;
    const [left, top, width, height] = [x0, y0, x1 - x0, y1 - y0].map((v) => v.toFixed(0));
    const [place, size] = [0, 1].map(() => document.createElement("span")); // two lines if need be
    place.textContent = `${left}, ${top},`;
    size.textContent = `${width} × ${height}`;
    box.append(place, " ", size);
    return row;
  });
  element("rows").replaceChildren(...rows);
}

function draw(detections) {
  const {width, height} = shown;
  const mostHeight = 0.8 * document.documentElement.clientHeight;
  const shownWidth = Math.min(element("figure").clientWidth, mostHeight * width / height);
  const ratio = window.devicePixelRatio;
  canvas.width = Math.max(1, Math.round(shownWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.width * height / width));
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.setAttribute("aria-label", `The image with ${detections.length} detections, listed in the table.`);
  const context = canvas.getContext("2d");
  context.drawImage(shown.image, 0, 0, canvas.width, canvas.height);
  const scale = canvas.width / width;
  const last = [...detections].reverse(); // the surest on top
  if (element("masks").checked) last.forEach((d) => d.mask && drawMask(context, d, scale));
  last.forEach((d) => drawBox(context, d, scale, ratio));
  drawLabels(context, detections, scale, ratio);
}

function drawMask(context, detection, scale) {
  const {x, y, image} = detection.mask;
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const layer = new OffscreenCanvas(Math.max(1, Math.ceil(width)), Math.max(1, Math.ceil(height)));
  const tint = layer.getContext("2d");
  tint.drawImage(image, 0, 0, width, height);
  tint.globalCompositeOperation = "source-in";
  tint.fillStyle = colourOf(detection);
  tint.fillRect(0, 0, layer.width, layer.height);
  context.globalAlpha = MASK_OPACITY;
  context.drawImage(layer, x * scale, y * scale);
  context.globalAlpha = 1;
}

function drawBox(context, detection, scale, ratio) {
  const [x0, y0, x1, y1] = detection.box.map((v) => v * scale);
  context.strokeStyle = context.fillStyle = colourOf(detection);
  context.lineWidth = 2 * ratio;
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  for (const [x, y] of detection.keypoints ?? []) {
    context.beginPath();
    context.arc(x * scale, y * scale, 3 * ratio, 0, 2 * Math.PI);
    context.fill();
  }
}

function drawLabels(context, detections, scale, ratio) {
  const size = 13 * ratio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const labels = detections.map((d) => {
    const text = `${d.name} ${d.score.toFixed(2)}`;
    const width = Math.min(context.measureText(text).width + size * 0.6, canvas.width);
    return {text, width, height: size * 1.4, box: d.box.map((v) => v * scale), colour: colourOf(d)};
  });
  placeLabels(labels, canvas.width, canvas.height).forEach((place, index) => {
    if (!place) return; // no room: the table has it
    const [x, y] = place;
    const {text, width, height, colour} = labels[index];
    context.fillStyle = colour;
    context.fillRect(x, y, width, height);
    context.fillStyle = "#ffffff";
    context.fillText(text, x + size * 0.3, y + height / 2, width - size * 0.6); // squeezed to fit
  });
}

// For each label [x, y] at a corner of its box, within the image and on no label before it, or null.
function placeLabels(labels, imageWidth, imageHeight) {
  const taken = [];
  return labels.map(({width, height, box: [x0, y0, x1, y1]}) => {
    for (const x of [x0 - 1, x1 - width]) {
      for (const y of [y0 - height, y1, y0, y1 - height]) {
        const left = Math.max(0, Math.min(x, imageWidth - width));
        const top = Math.max(0, Math.min(y, imageHeight - height));
        const place = {left, top, right: left + width, bottom: top + height};
        const free = !taken.some((t) =>
          place.left < t.right && t.left < place.right && place.top < t.bottom && t.top < place.bottom);
        if (free) {
          taken.push(place);
          return [left, top];
        }
      }
    }
    return null;
  });
}

element("file").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  if (files.length) choose(files);
});
element("threshold").addEventListener("input", show);
element("masks").addEventListener("change", show);
addEventListener("resize", show);
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) choose([...event.clipboardData.files]);
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser would leave for the image
  document.body.classList.remove("dragging");
  choose([...event.dataTransfer.files]);
});
element("threshold").value = settings.threshold;
show();
