/** Where labels go: into a data set, into a training that goes on. */
import type { Dataset } from "../data";
import type { LabelMessage } from "../formats";
import { applyEdits, imageOf, postMessage } from "../live";
import { DlfsError, ErrorCode } from "../native/error";

/** Takes labels; rejects with a DlfsError for those that it cannot take. */
export type LabelTarget = (message: LabelMessage) => Promise<void>;

/** Writes labels to a data set's store, of the split that each image is of. */
export function intoDataset(
  { store, classes }: Pick<Dataset, "store" | "classes">,
  { undo = false }: { /** Only try: what is wrong is said, and nothing changes. Default false. */ undo?: boolean } = {},
): LabelTarget {
  return async (message) => {
    const splits = message.split === undefined ? splitsWith(store, message.image) : [message.split];
    if (splits.length > 1) {
      throw new DlfsError(
        ErrorCode.argument,
        "split",
        `"${message.image}" is in ${splits.join(" and ")}: say which is meant`,
      );
    }
    const [split] = splits;
    const data = { store, classes, split: split ?? "", boxesPerImage: Number.POSITIVE_INFINITY };
    const image = split === undefined ? null : imageOf(data, message);
    if (!image) throw new DlfsError(ErrorCode.io, "image", `the data set has no "${message.image}"`);
    const undone = new Error("undone");
    try {
      store.transaction(() => {
        applyEdits(data, image, message);
        if (undo) throw undone;
      });
    } catch (error) {
      if (error !== undone) throw error;
    }
  };
}

function splitsWith(store: Dataset["store"], key: string): string[] {
  return store.findImages({ where: "i.key = ?", parameters: [key] }, { limit: 2 }).map(({ split }) => split);
}

/** Posts labels to a training's address, "http://HOST:PORT/live?token=...", as `dlfs train --live` prints it. */
export function intoTraining(address: string): LabelTarget {
  if (!URL.canParse(address)) throw new DlfsError(ErrorCode.argument, "live", `"${address}" is no address`);
  const { searchParams } = new URL(address);
  const token = searchParams.get("token") ?? process.env.DLFS_LIVE_TOKEN ?? "";
  return async (message) => {
    const answer = await postMessage({ url: address, token }, { type: "labels", value: message });
    if (!answer.accepted) throw new DlfsError(ErrorCode.argument, "live", answer.reason);
  };
}

/** Gives labels to several, in their order. */
export function intoAll(targets: readonly LabelTarget[]): LabelTarget {
  return async (message) => {
    for (const target of targets) await target(message);
  };
}
