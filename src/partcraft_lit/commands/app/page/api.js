// What the page asks of the server: small questions at once, drawing through the queue.

async function answer(response) {
  if (response.ok) return response;
  let text = "The server did not understand that.";
  try {
    text = (await response.json()).error || text;
  } catch {
    if (response.status === 413) text = "That file is too large.";
  }
  throw new Error(text);
}

async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The app does not answer. Is it still running?");
  }
}

export const get = async (path, signal) => (await answer(await ask(path, { signal }))).json();

export const post = async (path, body = {}) =>
  (await answer(await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }))).json();

export const send = async (path, file) =>
  (await answer(await ask(path, { method: "POST", headers: { "Content-Type": "application/octet-stream", "X-Name": encodeURIComponent(file.name || "photo") }, body: file }))).json();

/** Waits in gradio's queue for `name`; `on.waiting(rank)` and `on.started(expected seconds)` tell how it goes. */
export async function queued(name, data, { waiting, started, partial, signal } = {}) {
  const session_hash = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint8Array(12)), (x) => x.toString(16)).join("");
  const { functions } = await (queued.config ??= get("/api/queue"));
  await answer(
    await ask("/gradio_api/queue/join", {
      method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data: [data], fn_index: functions[name], session_hash, simple_format: true }),
    }),
  );
  const stream = await answer(await ask(`/gradio_api/queue/data?session_hash=${session_hash}`, { signal }));
  for await (const message of messages(stream.body)) {
    if (message.msg === "estimation") waiting?.(message.rank);
    if (message.msg === "process_starts") started?.(message.eta);
    if (message.msg === "process_generating" && message.success) partial?.(message.output.data[0]);
    if (message.msg === "process_completed") {
      if (message.success) return message.output.data?.[0];
      throw new Error(message.output.error || "That did not work; please try again.");
    }
    if (message.msg === "unexpected_error") throw new Error("The app stopped in the middle; please try again.");
  }
  throw new Error("The connection was lost; please try again.");
}

async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}
