// The viewer of a report. Nothing is decoded before a case is opened, and nothing is fetched: all data are in this page.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const section = byId("viewer");
  const facts = JSON.parse(byId("viewer-facts").textContent);
  const status = byId("viewer-status");
  const select = byId("viewer-case");
  const neurological = byId("viewer-neurological");
  const LAYERS = ["image", "reference", "prediction", "errors"];
  const state = { case: -1, window: 0, view: null, busy: Promise.resolve() };

  const say = (text) => { status.textContent = text; };
  const layer = (name) => ({
    box: section.querySelector(`[data-layer="${name}"]`), slider: section.querySelector(`[data-opacity="${name}"]`),
  });
  const opacity = (name) => { const { box, slider } = layer(name); return box.checked ? slider.value / 100 : 0; };

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  async function start() {
    if (state.view) return;
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old");
    const script = document.createElement("script");
    script.textContent = await unpacked("viewer-library");
    document.head.append(script);
    const options = {
      logLevel: "error", loadingText: "", backColor: [0, 0, 0, 1], dragAndDropEnabled: false, isColorbar: false,
      crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.25, show3Dcrosshair: true, fontColor: [1, 1, 1, 1], fontMinPx: 16,
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID, tileMargin: 4,
      viewModeHotKey: "", showAllOrientationMarkers: true, clipPlaneHotKey: "", cycleClipPlaneHotKey: "", scrollRequiresFocus: true,
    };
    const view = new niivue.Niivue(options);
    await view.attachToCanvas(byId("viewer-canvas"));
    // Grey in the planes, clear in the solid view, where it would hide the organs.
    view.addColormap("planes", { R: [0, 255], G: [0, 255], B: [0, 255], A: [0, 0], I: [0, 255] });
    view.onLocationChange = describe;
    state.view = view;
  }

  function labelColors(entries) {
    const channel = (at) => [0, ...entries.map((entry) => parseInt(entry.color.slice(at, at + 2), 16))];
    return {
      R: channel(1), G: channel(3), B: channel(5), A: [0, ...entries.map(() => 255)],
      I: [0, ...entries.map((_, n) => n + 1)], labels: ["background", ...entries.map((entry) => entry.name)],
    };
  }

  async function volume(name) {
    const made = await niivue.NVImage.loadFromBase64({
      base64: byId(`volume-${state.case}-${name}`).textContent.trim(), name: `${name}.nii.gz`, opacity: opacity(name),
    });
    if (name === "image") made.colormap = "planes";
    else made.setColormapLabel(labelColors(name === "errors" ? facts.errors : facts.organs));
    return made;
  }

  async function show(index) {
    const count = facts.cases.length;
    state.case = (index + count) % count;
    const chosen = facts.cases[state.case];
    select.value = String(state.case);
    say(`Opening ${chosen.name} …`);
    section.classList.add("open");
    byId("viewer-stage").hidden = false;
    await start();
    while (state.view.volumes.length) state.view.removeVolume(state.view.volumes[0]);
    for (const name of LAYERS) state.view.addVolume(await volume(name));
    windows(chosen.windows);
    byId("viewer-notes").textContent = chosen.notes;
    legend(chosen.organs);
    LAYERS.forEach(apply);
    sides();
    state.view.setSliceType(chosen.flat ? state.view.sliceTypeAxial : state.view.sliceTypeMultiplanar);
    await state.view.setVolumeRenderIllumination(0.6);
    state.view.scene.crosshairPos = state.view.vox2frac(chosen.at);
    state.view.createOnLocationChange();
    state.view.drawScene();
    section.dataset.shown = chosen.name;
    say(`${chosen.name}, case ${state.case + 1} of ${count}.`);
  }

  function legend(organs) {
    byId("viewer-organs").replaceChildren(...organs.map((n) => {
      const entry = document.createElement("li");
      const color = document.createElement("i");
      color.style.background = facts.organs[n].color;
      entry.append(color, facts.organs[n].name);
      return entry;
    }));
  }

  function windows(presets) {
    const home = byId("viewer-windows");
    home.replaceChildren(...presets.map((preset, n) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = preset.name;
      button.title = `${preset.low.toPrecision(4)} to ${preset.high.toPrecision(4)}`;
      button.addEventListener("click", () => applyWindow(n));
      return button;
    }));
    home.parentElement.hidden = presets.length === 0;
    state.window = Math.min(state.window, Math.max(0, presets.length - 1));
    if (presets.length) applyWindow(state.window);
  }

  function applyWindow(n) {
    const presets = facts.cases[state.case].windows;
    if (!presets.length) return;
    state.window = n % presets.length;
    const image = state.view.volumes[0];
    [image.cal_min, image.cal_max] = [presets[state.window].low, presets[state.window].high];
    state.view.updateGLVolume();
    [...byId("viewer-windows").children].forEach((button, at) => {
      button.setAttribute("aria-pressed", String(at === state.window));
    });
  }

  // Of a picture no one knows the patient's sides: it is shown as it is.
  const mirrored = () => !facts.cases[state.case].picture && !neurological.checked;

  function sides() {
    const { picture } = facts.cases[state.case];
    neurological.closest("fieldset").hidden = picture;
    state.view.opts.isOrientationTextVisible = state.view.opts.isOrientCube = !picture;
    state.view.opts.sagittalNoseLeft = mirrored();
    state.view.setRadiologicalConvention(mirrored());
  }

  function apply(name) {
    state.view.setOpacity(LAYERS.indexOf(name), opacity(name));
  }

  function describe(location) {
    const mm = Array.from(location.mm).slice(0, 3).map((value) => value.toFixed(1)).join(", ");
    const named = (entries, value) => (value > 0 && entries[Math.round(value) - 1]?.name) || "–";
    const [image, reference, prediction, errors] = location.values.map((each) => each.value);
    const parts = [`(${mm}) mm`];
    if (facts.cases[state.case].windows.length) parts.push(`intensity ${Number(image.toPrecision(4))}`);
    parts.push(`reference: ${named(facts.organs, reference)}`, `prediction: ${named(facts.organs, prediction)}`);
    if (errors > 0) parts.push(named(facts.errors, errors));
    byId("viewer-place").textContent = parts.join(" · ");
  }

  // One case after the other, however fast somebody clicks.
  function open(index) {
    state.busy = state.busy.then(() => show(index)).catch((error) => {
      say(`The viewer could not be started: ${error.message}. It needs WebGL 2; tables and pictures do not.`);
    });
    return state.busy;
  }

  function flip(name) {
    const { box } = layer(name);
    box.checked = !box.checked;
    if (state.case >= 0) apply(name);
  }

  const ready = (action) => () => { if (state.case >= 0) action(); };
  const move = (i, j, k) => ready(() => state.view.moveCrosshairInVox(mirrored() ? -i : i, j, k)); // as seen on the screen
  const KEYS = {
    n: () => open(state.case + 1), p: () => open(state.case < 0 ? 0 : state.case - 1),
    w: ready(() => applyWindow(state.window + 1)),
    s: ready(() => { if (!facts.cases[state.case].picture) { neurological.checked = !neurological.checked; sides(); } }),
    ArrowLeft: move(-1, 0, 0), ArrowRight: move(1, 0, 0), ArrowDown: move(0, -1, 0), ArrowUp: move(0, 1, 0),
    PageDown: move(0, 0, -1), PageUp: move(0, 0, 1),
    ...Object.fromEntries(LAYERS.map((name, n) => [String(n + 1), () => flip(name)])),
  };

  section.addEventListener("keydown", (event) => {
    const typing = ["SELECT", "INPUT"].includes(event.target.tagName) && event.target.type !== "checkbox";
    const onCanvas = event.target.tagName === "CANVAS";
    if (typing || event.ctrlKey || event.altKey || event.metaKey || !Object.hasOwn(KEYS, event.key)) return;
    if (event.key.length > 1 && !onCanvas) return;
    event.preventDefault();
    event.stopPropagation();
    KEYS[event.key]();
  }, true);

  for (const name of LAYERS) {
    const { box, slider } = layer(name);
    for (const [element, kind] of [[box, "change"], [slider, "input"]]) {
      element.addEventListener(kind, ready(() => apply(name)));
    }
  }
  neurological.addEventListener("change", ready(sides));
  select.addEventListener("change", () => open(Number(select.value)));
  byId("viewer-open").addEventListener("click", () => open(Number(select.value)));
  byId("viewer-next").addEventListener("click", KEYS.n);
  byId("viewer-previous").addEventListener("click", KEYS.p);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      section.scrollIntoView();
      open(Number(button.dataset.view)).then(() => byId("viewer-canvas").focus({ preventScroll: true }));
    });
  }
  byId("viewer-controls").hidden = false;
})();
