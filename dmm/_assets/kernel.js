// The end of a notebook's module: a figure with a policy as anywidget renders it. The files that the site loads from beside
// its pages, the kernel sends when the reader starts the figure: the same scripts.

function filesFromKernel(model) {
  return (names) => Promise.all(names.map((name) => new Promise((resolve, reject) => {
    const hear = (message, buffers) => {
      if (message.name !== name) return;
      model.off("msg:custom", hear);
      if (message.error) reject(new Error(message.error));
      else {
        (0, eval)(new TextDecoder().decode(buffers[0]));
        resolve([name, globalThis.dmmFiles[name]]);
        delete globalThis.dmmFiles[name];
      }
    };
    model.on("msg:custom", hear);
    model.send({ load: name });
  }))).then(Object.fromEntries);
}

function renderInNotebook({ model, el }) {
  const spec = model.get("spec");
  el.classList.add("dmm-widget");
  let end = () => {};
  let closed = false;
  const still = element("img", "", { src: model.get("still"), alt: spec.alt });
  el.append(still, makeStart(spec.title, async () => {
    end = await renderPolicy({ model, el, load: filesFromKernel(model) });
    if (closed) end();
  }));
  return () => { closed = true; end(); };
}

export default { render: renderInNotebook };
