// Everything besides chat: embeddings, files, sound, moderation, responses, models.
import { createHash } from "node:crypto";
import { toFile } from "openai";
import { client, refusal, tell } from "./harness.mjs";

const openai = client();
const digest = (data) => createHash("sha256").update(data).digest("hex");

const input = ["toll bridge", "toll road"];
const packed = await openai.embeddings.create({ model: "embed", input }); // the SDK asks for base64 by itself
const plain = await openai.embeddings.create({ model: "embed", input, encoding_format: "float" });
const furthest = Math.max(
  ...packed.data.flatMap((one, at) => one.embedding.map((value, i) => Math.abs(value - plain.data[at].embedding[i]))),
);
tell("embeddings", { sizes: packed.data.map((one) => one.embedding.length), furthest });

const data = Buffer.alloc(512 * 1024, "Bridges are crossed one at a time. ");
const made = await openai.files.create({ file: await toFile(data, "notes.bin"), purpose: "assistants" });
const listed = [];
for await (const file of openai.files.list()) listed.push(file.id);
const back = Buffer.from(await (await openai.files.content(made.id)).arrayBuffer());
tell("files", {
  bytes: made.bytes,
  listed: listed.includes(made.id),
  filename: (await openai.files.retrieve(made.id)).filename,
  same: digest(back) === digest(data),
  deleted: (await openai.files.delete(made.id)).deleted,
  afterwards: await refusal(() => openai.files.retrieve(made.id)),
});

const spoken = await openai.audio.speech.create({ model: "small", voice: "alloy", input: "five words of plain speech" });
tell("speech", { bytes: (await spoken.arrayBuffer()).byteLength });
const sound = await toFile(Buffer.alloc(5000, 1), "speech.mp3");
tell("transcription", { text: (await openai.audio.transcriptions.create({ model: "small", file: sound })).text });

const judged = await openai.moderations.create({ input: ["I hate tolls", "nice bridge"] });
tell("moderations", { flagged: judged.results.map((result) => result.flagged) });

const asked = { model: "small", input: "What is a toll bridge?" };
const whole = await openai.responses.create(asked);
let text = "";
let usage = null;
for await (const event of await openai.responses.create({ ...asked, stream: true })) {
  if (event.type === "response.output_text.delta") text += event.delta;
  if (event.type === "response.completed") usage = event.response.usage;
}
tell("responses", { whole: whole.output_text, text, usages: [whole.usage, usage] });

const models = [];
for await (const model of openai.models.list()) models.push(model.id);
tell("models", { models, one: (await openai.models.retrieve("embed")).id });
