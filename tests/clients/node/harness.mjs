// What every script here shares: a client of the gateway, and one JSON line per finding, which the test in Python reads.
import OpenAI from "openai";

export const KEY = process.env.GATEWAY_KEY;
export const BASE = process.env.GATEWAY_URL;

export const client = (more = {}) => new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0, timeout: 10_000, ...more });

export const tell = (what, found) => console.log(JSON.stringify({ what, ...found }));

export const fault = (word) => ({ headers: { "x-sim-fault": word } });

export const QUESTION = [{ role: "user", content: "What is a toll bridge?" }];

/** What a call was refused or broken with, in the SDK's words. */
export async function refusal(run) {
  try {
    await run();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message };
  }
  return { kind: "none" };
}
