// Hanging up: a stream that is left, a stream that is aborted, and a call that is aborted before its first byte.
import { client, fault, QUESTION, refusal, tell } from "./harness.mjs";

const asked = { model: "small", messages: QUESTION };
const chat = client().chat.completions;

let text = "";
for await (const chunk of await chat.create({ ...asked, stream: true }, fault("pace=40"))) {
  text += chunk.choices[0].delta.content ?? "";
  if (text.length > 20) break;
}
tell("left", { text });

const stream = await chat.create({ ...asked, stream: true }, fault("pace=40"));
let chunks = 0;
for await (const _ of stream) {
  chunks += 1;
  if (chunks === 5) stream.controller.abort();
}
tell("aborted", { chunks });

const signal = AbortSignal.timeout(200);
tell("before the first byte", await refusal(() => chat.create(asked, { ...fault("ttft=20"), signal })));
// The process stays until its standard input closes: its end must not be what hangs up.
process.stdin.resume();
