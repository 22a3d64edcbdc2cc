// Which class of error the SDK raises for each refusal, and that what breaks never looks whole.
import { client, fault, QUESTION, refusal, tell } from "./harness.mjs";

const ask = (openai, more = {}, options = {}) =>
  openai.chat.completions.create({ model: "small", messages: QUESTION, ...more }, options);

const refusals = {
  "a wrong key": [client({ apiKey: "tk-nobody" })],
  "a model the team may not use": [client(), { model: "locked" }],
  "an unknown model": [client(), { model: "smal" }],
  "a wrong type": [client(), { stream: "yes" }],
  "what the provider refuses": [client(), { model: "embed" }],
  "a rate limit": [client(), {}, fault("status=429")],
  "a failing provider": [client(), {}, fault("status=500")],
  "a busy provider": [client(), {}, fault("status=503")],
  "a body too large": [client(), { user: "x".repeat(1_100_000) }],
  "a whole answer that breaks": [client(), {}, fault("reset=1")],
  "too slow": [client({ timeout: 200 }), {}, fault("ttft=20")],
  "no gateway": [client({ baseURL: "http://127.0.0.1:9/v1" })],
};
for (const [what, call] of Object.entries(refusals)) tell(what, await refusal(() => ask(...call)));

for (const word of ["reset=3", "eof=3", "error-event=3", "no-done,eof=5", "malformed=3"]) {
  const stream = await ask(client(), { stream: true }, fault(word));
  let arrived = 0;
  let ended = false;
  const found = await refusal(async () => {
    for await (const chunk of stream) {
      arrived += 1;
      ended ||= chunk.choices.some((choice) => choice.finish_reason);
    }
  });
  tell(`a stream with ${word}`, { ...found, arrived, ended });
}

for (const word of ["reset=2", "eof=2", "chunk-garbage"]) {
  const speech = { model: "small", voice: "alloy", input: "five words of plain speech" };
  const found = await refusal(async () => (await client().audio.speech.create(speech, fault(word))).arrayBuffer());
  tell(`a relayed answer with ${word}`, found);
}
