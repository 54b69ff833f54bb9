"use strict";
(() => {
  const root = document.getElementById("viewer");
  const cases = JSON.parse(document.getElementById("viewer-cases").textContent);
  const find = (selector) => root.querySelector(selector);
  const canvas = find("canvas");
  const status = find(".viewer-status");
  const slider = (name) => find(`input[name="${name}"]`);
  const AXES = ["sagittal", "coronal", "axial"];
  const DRAWN = ["scan", "uncertainty", "labels"];
  const UNCERTAINTY_OPACITY = 0.7;
  let nv = null; // NiiVue, from the first click on
  let shown = null; // the case on the canvas, and what NiiVue made of it
  let queue = Promise.resolve(); // one case is loaded after the other

  async function bytes(id) {
    const text = atob(document.getElementById(id).textContent.trim());
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  async function start() {
    if (!window.DecompressionStream || !document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL 2. The pictures on this page show the cases without it");
    }
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await bytes("viewer-niivue"));
    document.head.append(script);
    find(".viewer-stage").hidden = false;
    nv = new niivue.Niivue({
      logLevel: "error",
      isRadiologicalConvention: true,
      dragAndDropEnabled: false,
      dragMode: niivue.DRAG_MODE.pan,
      crosshairWidth: 0.5,
      crosshairWidthUnit: "percent", // of the image's size
      multiplanarPadPixels: 4,
      isOrientCube: true,
      crosshairColor: [1, 1, 1, 0.6],
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      meshThicknessOn2D: 0, // in planes labels only
      fontColor: [1, 1, 1, 1],
      showAllOrientationMarkers: true,
      viewModeHotKey: "", // the radio buttons would not know
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
    });
    nv.onLocationChange = showSlice;
    nv.drawImage3D = () => {}; // in 3D surfaces only: volumes hide them and take seconds without a graphics card
    await nv.attachToCanvas(canvas);
  }

  async function volume(id, name, window, colours) {
    const image = await niivue.NVImage.new(await bytes(id), `${name}.nii`, "gray", 1, null, ...window);
    if (colours?.length) {
      const [R, G, B] = [0, 1, 2].map((part) => [0, ...colours.map((colour) => colour[part])]);
      image.setColormapLabel({ R, G, B, A: R.map((_, index) => (index ? 255 : 0)), I: R.map((_, index) => index) });
    }
    return image;
  }

  async function layer(description) {
    const image = await volume(description.data, description.kind, description.window, description.colours);
    if (description.kind === "uncertainty") {
      image.colormap = "magma";
      image.colormapType = 1; // from 0, more transparent the further below cal_min
      image.cal_min = description.window[1] / 2;
    }
    return { ...description, image };
  }

  async function surface(description) {
    const rgba = new Uint8Array([...description.colours[0], 255]);
    const mesh = await niivue.NVMesh.readMesh(await bytes(description.data), "surface.mz3", nv.gl, 1, rgba);
    return { ...description, mesh };
  }

  async function load(index) {
    if (!nv) await start();
    const chosen = cases[index];
    const grid = await volume(chosen.grid, "grid", [0, 1]);
    const layers = await Promise.all(chosen.volumes.map(layer));
    const surfaces = await Promise.all(chosen.surfaces.map(surface));
    for (const one of shown?.surfaces ?? []) one.mesh.unloadMesh(nv.gl);
    shown = { layers, surfaces };
    // what is later in this list is drawn over what is earlier
    const ordered = DRAWN.flatMap((kind) => layers.filter((one) => one.kind === kind).reverse());
    nv.volumes = [grid, ...ordered.map((one) => one.image)];
    nv.back = grid;
    nv.overlays = nv.volumes.slice(1);
    nv.meshes = surfaces.map((one) => one.mesh);
    listLayers();
    for (const input of root.querySelectorAll(".viewer-sliders input")) input.value = input.defaultValue;
    refresh();
    nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    nv.scene.crosshairPos = nv.mm2frac(chosen.centre);
    changeView();
  }

  function listLayers() {
    const fieldset = find(".viewer-layers");
    for (const label of fieldset.querySelectorAll("label")) label.remove();
    const first = shown.layers.find((one) => one.kind !== "scan");
    for (const one of [...shown.layers, ...shown.surfaces]) {
      const label = document.createElement("label");
      one.box = document.createElement("input");
      one.box.type = "checkbox";
      one.box.checked = one === first || one.kind === "scan" || one.kind === "surface";
      one.box.addEventListener("change", refresh);
      label.append(one.box, ` ${one.title} `);
      one.colours.forEach((colour, index) => {
        const [key, swatch] = [document.createElement("span"), document.createElement("span")];
        key.className = "viewer-key";
        swatch.className = "viewer-swatch";
        swatch.style.background = `rgb(${colour.join()})`;
        key.append(swatch, ` ${one.names[index]}`);
        label.append(key, " ");
      });
      fieldset.append(label);
    }
  }

  function refresh() {
    const opacities = { scan: 1, labels: Number(slider("opacity").value), uncertainty: UNCERTAINTY_OPACITY };
    for (const one of shown.layers) {
      one.image.opacity = one.box.checked ? opacities[one.kind] : 0;
      if (one.kind === "scan") adjust(one);
    }
    for (const one of shown.surfaces) one.mesh.visible = one.box.checked;
    nv.updateGLVolume();
  }

  function adjust(scan) {
    const [black, white] = scan.window;
    const middle = (black + white) / 2 - (Number(slider("brightness").value) * (white - black)) / 2;
    const half = ((white - black) / 2) * 4 ** -Number(slider("contrast").value);
    scan.image.cal_min = middle - half;
    scan.image.cal_max = middle + half;
  }

  const view = () => find('input[name="viewer-plane"]:checked').value;

  function changeView() {
    const types = niivue.SLICE_TYPE;
    nv.opts.multiplanarShowRender = shown.surfaces.length ? niivue.SHOW_RENDER.ALWAYS : niivue.SHOW_RENDER.NEVER;
    const chosen = { multi: types.MULTIPLANAR, surfaces: types.RENDER };
    nv.setSliceType(chosen[view()] ?? types[view().toUpperCase()]);
    find('input[value="surfaces"]').disabled = !shown.surfaces.length;
    showSlice();
  }

  function slices() {
    if (view() === "surfaces") return null;
    const axis = view() === "multi" ? 2 : AXES.indexOf(view());
    return { axis, count: nv.volumes[0].dimsRAS[axis + 1] };
  }

  function showSlice() {
    const plane = slices();
    slider("slice").disabled = !plane;
    if (!plane) return;
    const index = Math.floor(nv.scene.crosshairPos[plane.axis] * plane.count);
    slider("slice").max = plane.count;
    slider("slice").value = Math.min(index, plane.count - 1) + 1;
    find(".viewer-slice").textContent = `Slice ${slider("slice").value} of ${plane.count}, ${AXES[plane.axis]}`;
  }

  function goTo(number) {
    const plane = slices();
    if (!plane) return;
    const index = Math.min(Math.max(number, 1), plane.count) - 1;
    nv.scene.crosshairPos[plane.axis] = (index + 0.5) / plane.count;
    nv.drawScene();
    showSlice();
  }

  function turn(key) {
    const { renderAzimuth, renderElevation } = nv.scene;
    const [sideways, upwards] = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[key];
    nv.setRenderAzimuthElevation(renderAzimuth + sideways, renderElevation + upwards);
  }

  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    event.stopImmediatePropagation(); // NiiVue's own keys, some of which the controls would not know
    if (!step || !shown) return;
    event.preventDefault();
    if (view() === "surfaces") turn(event.key);
    else goTo(Number(slider("slice").value) + step);
  }, true);

  async function choose(button) {
    status.textContent = `Loading ${button.textContent} ...`;
    await new Promise((done) => setTimeout(done)); // the text appears
    try {
      await load(button.dataset.case);
      for (const other of root.querySelectorAll("button[data-case]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      canvas.setAttribute("aria-label", `Slices and surfaces of ${button.textContent}`);
      status.textContent = `${button.textContent}. ${cases[button.dataset.case].note}`;
    } catch (error) {
      status.textContent = `${button.textContent} cannot be shown: ${error.message}.`;
    }
  }

  for (const button of root.querySelectorAll("button[data-case]")) {
    button.addEventListener("click", () => (queue = queue.then(() => choose(button))));
  }
  for (const radio of root.querySelectorAll('input[name="viewer-plane"]')) radio.addEventListener("change", changeView);
  slider("slice").addEventListener("input", (event) => goTo(Number(event.target.value)));
  for (const name of ["opacity", "brightness", "contrast"]) slider(name).addEventListener("input", refresh);
  find(".viewer-ui").hidden = false;
  find(".viewer-without-scripts").hidden = true;
})();
