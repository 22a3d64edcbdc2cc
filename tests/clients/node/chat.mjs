// Chat and completions: whole, streamed, several choices, parallel tool calls, structured output, reasoning.
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { client, QUESTION, tell } from "./harness.mjs";

const openai = client();
const chat = openai.chat.completions;

async function gathered(stream) {
  const texts = {};
  const usages = [];
  for await (const chunk of stream) {
    for (const choice of chunk.choices) texts[choice.index] = (texts[choice.index] ?? "") + (choice.delta.content ?? "");
    if (chunk.usage) usages.push(chunk.usage);
  }
  return { texts, usages };
}

const texts = (answer) => Object.fromEntries(answer.choices.map((choice) => [choice.index, choice.message.content]));

const asked = { model: "small", messages: QUESTION };
const whole = await chat.create(asked);
tell("whole", { texts: texts(whole), usages: [whole.usage] });
tell("streamed", await gathered(await chat.create({ ...asked, stream: true, stream_options: { include_usage: true } })));
tell("streamed without usage", await gathered(await chat.create({ ...asked, stream: true })));

tell("three choices", { texts: texts(await chat.create({ ...asked, n: 3 })) });
tell("three choices streamed", await gathered(await chat.create({ ...asked, n: 3, stream: true })));

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = ["weather", "traffic"].map((name) => ({ type: "function", function: { name, parameters } }));
const called = { model: "small", messages: [{ role: "user", content: "Please use tools." }], tools };
const calls = (message) =>
  message.tool_calls.map((call) => ({ id: call.id, name: call.function.name, arguments: call.function.arguments }));
tell("tools", { calls: calls((await chat.create(called)).choices[0].message) });
const final = await chat.stream(called).finalChatCompletion();
tell("tools streamed", { calls: calls(final.choices[0].message) });

const Toll = z.object({ bridge: z.string(), cents: z.int() });
const parsed = await chat.parse({ ...asked, response_format: zodResponseFormat(Toll, "toll") });
tell("structured", { valid: Toll.safeParse(parsed.choices[0].message.parsed).success });

tell("reasoning", { usage: (await chat.create({ ...asked, model: "reason" })).usage });

const older = { model: "small", prompt: "Once upon a time", max_tokens: 12 };
let told = "";
for await (const chunk of await openai.completions.create({ ...older, stream: true })) told += chunk.choices[0].text;
tell("completions", { text: (await openai.completions.create(older)).choices[0].text, told });
