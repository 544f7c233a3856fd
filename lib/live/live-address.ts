/** Where a training is heard and told things, so that others on its machine find it: a file in its run folder. */
import { readFile, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { fileError, isAlive, writeFileAtomic } from "../formats/atomic-file";
import { DlfsError, ErrorCode } from "../native/error";

/** A training that goes on. */
export interface LiveAddress {
  /** "http://127.0.0.1:7007/" */
  url: string;
  /** Undefined where it is the user's own, who tells it to whom he likes. */
  token?: string;
  /** The split that it is trained on, and takes labels of. */
  split: string;
}

interface Stored extends LiveAddress {
  host: string;
  pid: number;
}

const pathOf = (run: string): string => join(run, "live", "address.json");

/** Leaves a training's address in its run folder, for this user alone. */
export async function writeLiveAddress(run: string, address: LiveAddress): Promise<void> {
  const stored: Stored = { ...address, host: hostname(), pid: process.pid };
  await writeFileAtomic(pathOf(run), `${JSON.stringify(stored, null, 1)}\n`, 0o600);
}

/** Takes it away: the training has ended. */
export async function removeLiveAddress(run: string): Promise<void> {
  await rm(pathOf(run), { force: true }).catch((error) => {
    throw fileError(pathOf(run), "remove the file", error);
  });
}

/**
 * The address of a run's training; null where none goes on: there is no file, or it is of a process that was killed.
 *
 * @throws DlfsError where the file cannot be read, or is of another machine, where the training may go on
 */
export async function findLiveAddress(run: string): Promise<LiveAddress | null> {
  const path = pathOf(run);
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw fileError(path, "read the training's address", error);
  }
  const { host, pid, url, token, split } = parse(text, path);
  if (host !== hostname()) {
    const reason = `the training goes on at ${host}: edit there, or remove the file where it was killed`;
    throw new DlfsError(ErrorCode.io, path, reason);
  }
  return isAlive(pid) ? { url, split, ...(token !== undefined && { token }) } : null;
}

function parse(text: string, path: string): Stored {
  try {
    const found = JSON.parse(text) as Stored;
    const texts = [found.host, found.url, found.split, found.token ?? ""];
    const good = texts.every((one) => typeof one === "string") && Number.isSafeInteger(found.pid);
    if (good && URL.canParse(found.url)) return found;
  } catch {
    // No JSON: the same.
  }
  throw new DlfsError(ErrorCode.io, path, "damaged: expected the address of a training");
}
