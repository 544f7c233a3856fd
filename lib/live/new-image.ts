/** An image that a data set gets while it is trained on. */
import type { DataSource, ImageCodec, ImageRecord } from "../data";
import { keyProblem, SourceError } from "../data/data-source";
import type { LabelMessage } from "../formats";
import { type LabelledData, refuse } from "./label-edits";

/** A data set that images may come to. */
export type GrowingData = LabelledData & { readonly source: DataSource; readonly codec: ImageCodec };

/** An image that is checked, and whose file the data set's source has. */
export interface AdmittedImage {
  /** Adds it to the store, without boxes. */
  add(): ImageRecord;
  /** Removes its file, where the message brought it: the message is refused. */
  withdraw(): Promise<void>;
}

/**
 * Checks the image that a message brings, and writes its file. No file that is there is written over.
 *
 * @throws DlfsError naming the field that is wrong
 */
export async function admitImage(
  { store, split, source, codec }: GrowingData,
  { image: key, newImage, author, time }: LabelMessage,
): Promise<AdmittedImage> {
  const problem = keyProblem(key);
  if (problem !== null) refuse("image", `${JSON.stringify(key)}: ${problem}`);
  if (!newImage) return refuse("image", `"${key}" is none of "${split}", and the message brings none`);
  const [other] = store.findImages({ where: "i.key = ?", parameters: [key] }, { limit: 1 });
  if (other) refuse("image", `"${key}" is of "${other.split}", which is not trained on`);
  const present = await source.read(key).catch((error: Error) => {
    if (error instanceof SourceError && error.reason === "missing") return null;
    throw error;
  });
  const bytes = newImage.bytes ?? present;
  if (!bytes) return refuse("image", `"${key}" is not in the data set's source, and the message brings no bytes`);
  if (newImage.bytes && present && Buffer.compare(present, newImage.bytes) !== 0) {
    refuse("image", `there is another file at "${key}" of the data set's source`);
  }
  const { width, height } = codec.info(bytes);
  const given = [newImage.width, newImage.height];
  if (given.some((side) => side !== 0) && (given[0] !== width || given[1] !== height)) {
    refuse("new_image", `the file is ${width}x${height}, the message says ${given.join("x")}`);
  }
  if (!present) await source.write(key, bytes);
  return {
    add() {
      const where = "i.source_id = (SELECT MAX(source_id) FROM images WHERE split = ?)";
      const largest = store.findImages({ split, where, parameters: [split] }, { limit: 1 })[0]?.sourceId ?? 0;
      const fileName = key.slice(key.lastIndexOf("/") + 1);
      const row = { sourceId: largest + 1, fileName, key, width, height };
      const [id] = store.addImages(split, [row], { source: "human", author, time });
      return store.image(id as number) as ImageRecord;
    },
    async withdraw() {
      // What else is wrong is what to report; a file that stays is known when the image comes again.
      if (!present) await source.remove(key).catch(() => undefined);
    },
  };
}
