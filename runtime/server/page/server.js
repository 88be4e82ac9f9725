// Requests to the server that this page came from, and the events that it answers with.

import { askForKey, storedKey } from "./key.js";

// Asks for a key, and again, as long as the server refuses the one there is.
export async function call(path, options = {}) {
  for (let tries = 0; ; tries++) {
    const key = storedKey();
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey(tries > 0 || key !== null);
  }
}

// What a stream says, event by event; an error in it is thrown.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection was lost before the answer was complete");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Why the server refused, in its own words.
export async function problem(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answered with status ${response.status}`;
}
