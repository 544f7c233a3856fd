/** What is asked for behind a "?", read and checked, and answers as JSON. */
import { PAGE_HEADERS } from "../monitor";
import { DlfsError, ErrorCode } from "../native/error";

export const json = (value: unknown): Response => Response.json(value, { headers: PAGE_HEADERS });

export const wrong = (name: string, reason: string): DlfsError =>
  new DlfsError(ErrorCode.argument, name, `expected ${reason}`);

export function real(query: URLSearchParams, name: string): number | undefined {
  const text = query.get(name);
  if (text === null) return undefined;
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw wrong(name, `a number, got "${text}"`);
  return value;
}

/** A number from 0 to 1. */
export function share(query: URLSearchParams, name: string, otherwise: number): number {
  const value = real(query, name) ?? otherwise;
  if (value < 0 || value > 1) throw wrong(name, `from 0 to 1, got ${value}`);
  return value;
}

export function optionalInteger(query: URLSearchParams, name: string): number | undefined {
  const value = real(query, name);
  if (value !== undefined && !(Number.isSafeInteger(value) && value >= 0)) {
    throw wrong(name, `an integer from 0, got ${value}`);
  }
  return value;
}

export function integer(query: URLSearchParams, name: string, otherwise: number, least: number, most: number): number {
  const value = optionalInteger(query, name) ?? otherwise;
  if (value < least || value > most) throw wrong(name, `${least} to ${most}, got ${value}`);
  return value;
}

/** One of some words; the first where none is given. */
export function word<T extends string>(query: URLSearchParams, name: string, words: readonly T[]): T {
  const text = query.get(name) ?? words[0];
  const found = words.find((one) => one === text);
  if (found === undefined) throw wrong(name, `${words.join(", ")}, got "${text}"`);
  return found;
}
