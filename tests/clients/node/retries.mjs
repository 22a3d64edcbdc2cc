// The SDK as it comes, with its own retries: one call, and how it ended.
import { client, QUESTION, refusal, tell } from "./harness.mjs";

const openai = client({ maxRetries: 2 });
tell("call", await refusal(() => openai.chat.completions.create({ model: "m", messages: QUESTION })));
